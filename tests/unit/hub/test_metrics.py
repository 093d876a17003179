"""The hub's metrics, read back with Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dry_work.hub.core import ConnectionState
from dry_work.hub.events import CHANNELS, DATA_FEEDS, FEEDS, HubEvent
from dry_work.hub.message_types import count_kinds, item_type, message_type, name_counts
from dry_work.hub.metrics import HubCounts, encode_hub_metrics
from dry_work.hub.ports import SinkStatus, TopicStatus
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.observability.metrics import Histogram, Metric

Series = tuple[str, frozenset[tuple[str, str]]]

EXACT = {
    "alpaca_proxy_messages_received_total": "counter",
    "alpaca_proxy_messages_sent_total": "counter",
    "alpaca_proxy_messages_dropped_total": "counter",
    "alpaca_proxy_websocket_connections": "gauge",
    "alpaca_proxy_grpc_clients": "gauge",
    "alpaca_proxy_subscriptions_total": "gauge",
    "alpaca_proxy_websocket_errors_total": "counter",
    "alpaca_proxy_reconnects_total": "counter",
    "alpaca_proxy_message_processing_seconds": "histogram",
    "nalpaca_canceler_cancel_count": "counter",
    "nalpaca_canceler_order_cancel_errs": "counter",
    "nalpaca_canceler_cancel_all_count": "counter",
    "nalpaca_canceler_cancel_all_errs": "counter",
    "nalpaca_orders_orders_created_count": "counter",
    "nalpaca_orders_orders_failed_count": "counter",
    "nalpaca_stocks_stream_total_err": "counter",
    "nalpaca_stocks_stream_marshal_err": "counter",
    "nalpaca_stocks_stream_pub_err": "counter",
}


def parse(text: str) -> dict[Series, float]:
    """Return values by name as it is written, and labels."""
    assert list(text_string_to_metric_families(text))  # Prometheus can read it
    found: dict[Series, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        (family,) = text_string_to_metric_families(line)
        (sample,) = family.samples
        found[line.partition("{")[0].partition(" ")[0], frozenset(sample.labels.items())] = sample.value
    return found


def encode(**counts: object) -> dict[Series, float]:
    return parse(encode_hub_metrics(HubCounts(**{"feeds": (), **counts})).decode())  # type: ignore[arg-type]


def value(found: Mapping[Series, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_names_and_types_are_exactly_the_documented_ones() -> None:
    processing = Histogram().read()
    text = encode_hub_metrics(HubCounts(feeds=(FeedStatus(feed="iex", processing=processing),))).decode()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    assert types.items() >= EXACT.items()
    written = {name for name, _ in parse(text)}
    histogram = "alpaca_proxy_message_processing_seconds"
    assert written >= (EXACT.keys() - {histogram}) | {f"{histogram}_{part}" for part in ("bucket", "sum", "count")}
    assert not [name for name in written if name.endswith("_created") or "count_total" in name or "err_total" in name]


def test_what_came_from_alpaca_is_told_by_feed_and_type() -> None:
    found = encode(
        feeds=(
            FeedStatus(feed="sip", items={"q": 5, "t": 4, "b": 3, "u": 2}, unknown={"z": 1, "y": 1}, watermarks=7),
            FeedStatus(feed="indicative", items={"q": 2}),
            FeedStatus(feed="crypto", items={"o": 1}),
            FeedStatus(feed="news", items={"n": 6}),
            FeedStatus(feed="orders.live", items={"fill": 2, "new": 3}),
        )
    )
    name = "alpaca_proxy_messages_received_total"
    expected = {
        ("sip", "stock_quote"): 5, ("sip", "stock_trade"): 4, ("sip", "stock_bar"): 3, ("sip", "stock_updated_bar"): 2,
        ("sip", "stock_unknown"): 2, ("sip", "stock_watermark"): 7, ("opra", "option_quote"): 2,
        ("opra", "option_trade"): 0, ("crypto", "crypto_orderbook"): 1, ("news", "news"): 6,
        ("trading", "order_update"): 5,
    }  # fmt: skip
    assert {pair: value(found, name, feed=pair[0], message_type=pair[1]) for pair in expected} == expected


def test_connections_subscriptions_errors_and_reconnects_are_told_by_feed() -> None:
    found = encode(
        feeds=(
            FeedStatus(
                feed="iex",
                state=ConnectionState.CONNECTED,
                subscribed=12,
                reconnects=3,
                errors={406: 2},
                malformed={"frame": 1, "b: no price": 4},
                ends={"lost": 3, "fatal": 1},
            ),
        )
    )
    assert value(found, "alpaca_proxy_websocket_connections", feed="sip") == 1
    assert value(found, "alpaca_proxy_websocket_connections", feed="trading") == 0
    assert value(found, "alpaca_proxy_subscriptions_total", feed="sip") == 12
    assert value(found, "alpaca_proxy_reconnects_total", feed="sip") == 3
    expected = {"lost": 3, "fatal": 1, "malformed": 5, "code_406": 2}
    name = "alpaca_proxy_websocket_errors_total"
    assert {kind: value(found, name, feed="sip", error_type=kind) for kind in expected} == expected


def test_the_times_of_frames_are_a_histogram() -> None:
    times = Histogram((0.001, 0.01))
    for seconds in (0.0005, 0.001, 0.002, 5.0):
        times.observe(seconds)
    found = encode(feeds=(FeedStatus(feed="iex", processing=times.read()),))
    name = "alpaca_proxy_message_processing_seconds"
    buckets = {bound: value(found, f"{name}_bucket", feed="sip", le=bound) for bound in ("0.001", "0.01", "+Inf")}
    assert buckets == {"0.001": 2, "0.01": 3, "+Inf": 4}
    assert value(found, f"{name}_count", feed="sip") == 4
    assert value(found, f"{name}_sum", feed="sip") == pytest.approx(5.0035)


def test_what_clients_got_and_did_not_get_is_told_by_type() -> None:
    found = encode(
        sinks=(
            SinkStatus(
                name="grpc",
                clients=2,
                delivered=7,
                dropped=3,
                conflated=4,
                delivered_types={"stock_quote": 7},
                dropped_types={"stock_quote": 2, "option_quote": 1},
            ),
            SinkStatus(name="redis", clients=1, delivered=5, dropped=1, delivered_types={"stock_quote": 1}),
        ),
        topics=(TopicStatus(topic="market-data", published=9, dropped=2), TopicStatus(topic="else", published=1)),
        topic_types={"market-data": "stock_bar"},
    )
    sent = {"stock_quote": 8, "stock_trade": 0, "stock_bar": 9, "other": 5}
    dropped = {"stock_quote": 2, "option_quote": 1, "stock_bar": 2, "other": 1, "order_update": 0}
    assert {kind: value(found, "alpaca_proxy_messages_sent_total", message_type=kind) for kind in sent} == sent
    assert {kind: value(found, "alpaca_proxy_messages_dropped_total", message_type=kind) for kind in dropped} == dropped
    assert value(found, "alpaca_proxy_messages_conflated_total", sink="grpc") == 4
    assert value(found, "alpaca_proxy_grpc_clients") == 2
    assert value(found, "alpaca_proxy_clients", sink="redis") == 1


def test_results_at_nats_are_told_as_done_or_failed() -> None:
    results = {
        ("order", "accepted"): 3,
        ("order", "duplicate"): 1,
        ("order", "refused"): 2,
        ("order", "gave_up"): 1,
        ("cancel", "accepted"): 5,
        ("cancel", "refused"): 4,
        ("cancel_all", "accepted"): 6,
        ("cancel_all", "gave_up"): 7,
    }
    found = encode(sinks=(SinkStatus(name="nats", results=results, failures={"marshal": 2, "publish": 3}),))
    assert {name: value(found, name) for name, _ in found if name.startswith("nalpaca_")} == {
        "nalpaca_orders_orders_created_count": 4,
        "nalpaca_orders_orders_failed_count": 3,
        "nalpaca_canceler_cancel_count": 5,
        "nalpaca_canceler_order_cancel_errs": 4,
        "nalpaca_canceler_cancel_all_count": 6,
        "nalpaca_canceler_cancel_all_errs": 7,
        "nalpaca_stocks_stream_total_err": 5,
        "nalpaca_stocks_stream_marshal_err": 2,
        "nalpaca_stocks_stream_pub_err": 3,
    }


def test_labels_are_escaped() -> None:
    text = Metric("a_b", "gauge", "x\\y\nz").add(1.5, feed='a"b\\c\nd').encode()
    (family,) = text_string_to_metric_families(text)
    assert family.documentation == "x\\y\nz"
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"feed": 'a"b\\c\nd'}, 1.5)]


@pytest.mark.parametrize(("number", "text"), [(float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN")])
def test_numbers_without_digits_have_their_own_words(number: float, text: str) -> None:
    assert Metric("a", "gauge", "b").add(number).encode().splitlines()[-1] == f"a {text}"


def test_a_part_that_fails_is_told_and_the_others_go_on() -> None:
    def fail(_: HubCounts) -> list[Metric]:
        raise ZeroDivisionError("broken")

    def work(_: HubCounts) -> list[Metric]:
        return [Metric("good", "gauge", "good").add(1)]

    errors: list[Exception] = []
    counts = HubCounts(feeds=())
    body = encode_hub_metrics(counts, on_error=errors.append, builders=(fail, work))
    assert body.endswith(b"good 1\n")
    assert [str(error) for error in errors] == ["broken"]
    with pytest.raises(ZeroDivisionError):
        encode_hub_metrics(counts, builders=(fail, work))


@pytest.mark.parametrize("name", ["1a", "a-b", ""])
def test_what_is_no_name_of_a_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a metric"):
        Metric(name, "gauge", "x")


@pytest.mark.parametrize("bounds", [(), (2.0, 1.0), (1.0, 1.0)])
def test_bounds_have_to_rise(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="each above the one before"):
        Histogram(bounds)


def test_every_channel_of_every_feed_has_a_type_of_its_own() -> None:
    types = [message_type(feed, channel) for feed in ("stocks", "crypto") for channel in CHANNELS.values()]
    assert len(set(types)) == len(types)
    assert {message_type(feed, "orders") for feed in FEEDS if feed not in DATA_FEEDS} == {"order_update"}
    assert item_type("options", "x-new") == "option_unknown"


def test_events_are_counted_by_feed_and_channel() -> None:
    def event(feed: str, channel: str) -> HubEvent:
        return HubEvent(feed=feed, channel=channel, symbol="A", item={}, epoch="e", offset=1, ts_recv_ns=0)

    events = [event("stocks", "quotes"), event("stocks", "quotes"), event("options", "trades"), event("news", "news")]
    counted = count_kinds(events)
    assert counted == {("stocks", "quotes"): 2, ("options", "trades"): 1, ("news", "news"): 1}
    assert name_counts(counted) == {"stock_quote": 2, "option_trade": 1, "news": 1}
    orders = {("orders.paper", "orders"): 2, ("orders.live", "orders"): 3}
    assert name_counts(orders) == {"order_update": 5}


def test_trades_of_options_are_counted_by_what_became_of_them() -> None:
    found = encode(option_bars={"trades": 7, "late_trades": 2, "bars": 3, "incomplete_minutes": 1})
    trades = "alpaca_proxy_option_trades_total"
    outcomes = {name: value(found, trades, outcome=name) for name in ("in_bar", "late", "taken_back", "malformed")}
    assert outcomes == {"in_bar": 7, "late": 2, "taken_back": 0, "malformed": 0}
    assert value(found, "alpaca_proxy_option_bars_total") == 3
    assert value(found, "alpaca_proxy_option_minutes_incomplete_total") == 1
