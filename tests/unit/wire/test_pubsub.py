from __future__ import annotations

import json
import math
import re
import string
from datetime import UTC, datetime, timedelta

import backtrader as bt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError
from dry_work.market.messages import Bar, BarBatch, Envelope, News, Watermark
from dry_work.wire import pubsub
from dry_work.wire.pubsub import (
    RESERVED_NAMES,
    encode_bar,
    encode_batch,
    encode_news,
    encode_time,
    encode_watermark,
    is_extra_name,
    parse_message,
    parse_time,
)

RECV_NS = 1_700_000_000_000_000_000
BODY = {"timestamp": "2024-01-02T14:30:00Z", "open": 1, "high": 2, "low": 0.5, "close": 1.5, "volume": 10}
START_NS = 1_704_205_800_000_000_000


def parse(body: object, **attributes: str) -> Envelope:
    attributes.setdefault("symbol", "AAPL")
    return parse_message("market-data", json.dumps(body).encode(), attributes, recv_ns=RECV_NS)


def parse_bar(body: object, **attributes: str) -> Bar:
    message = parse(body, **attributes).message
    assert isinstance(message, Bar)
    return message


def reason(body: object, **attributes: str) -> str:
    with pytest.raises(CodecError) as caught:
        parse(body, **attributes)
    return caught.value.reason


symbols = st.sampled_from(["AAPL", "BRK.B", "BTC/USD", "AAPL240315C00172500"])
times = st.integers(min_value=0, max_value=2**63 - 1)
prices = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
amounts = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=12).filter(is_extra_name)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
bars = st.builds(
    Bar,
    symbol=symbols,
    ts_event_ns=times,
    open=prices,
    high=prices,
    low=prices,
    close=prices,
    volume=amounts,
    trade_count=st.none() | amounts,
    vwap=st.none() | amounts,
    revision=st.integers(0, 1000),
    source=st.sampled_from(["", "alpaca_stock", "alpaca_crypto"]),
    extra=st.dictionaries(
        names.filter(lambda n: n not in ("vwap", "trade_count", "symbol", "type", "source", "timestamp", "revision")),
        numbers,
        max_size=4,
    ),
    ts_recv_ns=st.just(RECV_NS),
)
sequences = st.just(("", 0)) | st.tuples(st.text(string.hexdigits, min_size=1), st.integers(0, 10**17))


@given(bars, sequences)
def test_a_bar_comes_back_as_it_was_written(bar: Bar, sequence: tuple[str, int]) -> None:
    epoch, seq = sequence
    payload, attributes = encode_bar(bar, epoch=epoch, seq=seq)
    envelope = parse_message("t", payload, attributes, recv_ns=RECV_NS)
    assert envelope == Envelope(topic="t", message=bar, epoch=epoch, seq=seq)
    assert attributes["symbol"] == bar.symbol.replace("/", "-")


@given(
    st.builds(
        Watermark,
        slice=st.integers(1, 2**62),
        end_ns=times,
        bars=st.integers(0, 2**62),
        event_id=texts,
        last=st.booleans(),
    ),
    sequences,
)
def test_a_watermark_comes_back_as_it_was_written(mark: Watermark, sequence: tuple[str, int]) -> None:
    epoch, seq = sequence
    payload, attributes = encode_watermark(mark, epoch=epoch, seq=seq)
    assert "symbol" not in attributes
    assert attributes["type"] == "watermark"
    envelope = parse_message("t", payload, attributes, recv_ns=RECV_NS)
    assert envelope == Envelope(topic="t", message=mark, epoch=epoch, seq=seq)


@given(
    st.builds(
        News,
        symbols=st.lists(symbols, max_size=3).map(tuple),
        headline=texts,
        summary=texts,
        author=texts,
        url=texts,
        source=texts,
        created_at=texts,
        updated_at=texts,
        ingested_at=texts,
        ts_recv_ns=st.just(RECV_NS),
    )
)
def test_news_comes_back_as_it_was_written(news: News) -> None:
    payload, attributes = encode_news(news)
    assert attributes["type"] == "news"
    assert parse_message("news-data", payload, attributes, recv_ns=RECV_NS).message == news


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["nan", "-inf", "1e999", "12", "1_0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
KEYS = ["type", "symbol", "timestamp", "open", "high", "low", "close", "volume", "revision", "slice", "end", "bars",
        "event_id", "last", "symbols", "headline", "rsi"]  # fmt: skip
payloads = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from(KEYS) | texts,
    json_values | st.sampled_from(["bar", "watermark", "news", "2024-01-02T14:30:00Z", 1, 2.5]),
).map(lambda body: json.dumps(body).encode())
attribute_maps = st.dictionaries(
    st.sampled_from(["symbol", "type", "epoch", "seq", "encoding"]) | texts,
    texts | st.sampled_from(["AAPL", "BTC-USD", "bar", "watermark", "news", "batch", "1", "-1", "٣"]),
)


@given(payloads, attribute_maps)
def test_any_bytes_and_attributes_give_an_envelope_or_a_codec_error(data: bytes, attributes: dict[str, str]) -> None:
    try:
        envelope = parse_message("t", data, attributes, recv_ns=RECV_NS)
    except CodecError as error:
        if error.reason not in REASONS:
            raise
        return
    if isinstance(envelope.message, Bar):
        bar = envelope.message
        assert all(math.isfinite(price) and price > 0 for price in (bar.open, bar.high, bar.low, bar.close))
        assert math.isfinite(bar.volume)
        assert all(math.isfinite(value) for value in bar.extra.values())
        assert all(is_extra_name(name) for name in bar.extra)


REASONS = {
    "not a JSON array", "not JSON", "not a JSON object", "unknown type", "missing symbol", "bad symbol",
    "missing price",
    "non-numeric price", "non-finite price", "negative price", "zero price", "bad volume", "bad revision",
    "bad timestamp", "bad watermark", "bad news",
}  # fmt: skip


def test_numbers_may_be_numeric_strings() -> None:
    bar = parse_bar({**BODY, "open": "1.25", "high": " 2e0 ", "volume": "100", "rsi": "55.5", "revision": "2"})
    assert (bar.open, bar.high, bar.volume, bar.extra, bar.revision) == (1.25, 2.0, 100.0, {"rsi": 55.5}, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "missing price"),
        ("abc", "non-numeric price"),
        ("1_000", "non-numeric price"),
        (True, "non-numeric price"),
        ([1], "non-numeric price"),
        ("nan", "non-finite price"),
        (math.nan, "non-finite price"),
        (math.inf, "non-finite price"),
        ("-Infinity", "non-finite price"),
        pytest.param(10**400, "non-finite price", id="huge"),
        (-1, "negative price"),
        ("0", "zero price"),
        (-0.0, "zero price"),
    ],
)
@pytest.mark.parametrize("key", ["open", "high", "low", "close"])
def test_a_bar_without_a_usable_price_is_refused_with_the_reason(key: str, value: object, expected: str) -> None:
    assert reason({**BODY, key: value}) == expected


def test_a_missing_price_key_is_refused() -> None:
    assert reason({key: value for key, value in BODY.items() if key != "close"}) == "missing price"


@pytest.mark.parametrize("volume", ["x", -1, math.nan, True])
def test_a_volume_that_is_no_amount_is_refused(volume: object) -> None:
    assert reason({**BODY, "volume": volume}) == "bad volume"


@pytest.mark.parametrize("revision", [-1, 1.5, "x", True, math.nan])
def test_a_revision_that_is_no_count_is_refused(revision: object) -> None:
    assert reason({**BODY, "revision": revision}) == "bad revision"


@pytest.mark.parametrize(
    ("data", "attributes", "expected"),
    [
        (b"", {}, "not JSON"),
        (b"\xff\xfe", {}, "not JSON"),
        (b"NaN", {}, "not a JSON object"),
        (b"{NaN", {}, "not JSON"),
        (b"[" * 100_000 + b"NaN", {}, "not JSON"),
        (b'{"type":"news","headline":"\\ud800"}', {}, "not JSON"),
        (b"[]", {}, "not a JSON object"),
        (b"{}", {"encoding": "batch"}, "not a JSON array"),
        (b"{", {"encoding": "batch"}, "not JSON"),
        (b'{"type":"quote"}', {}, "unknown type"),
        (b"{}", {"type": "quote"}, "unknown type"),
        (b'{"type":7}', {}, "unknown type"),
        (b'{"type":["bar"]}', {}, "unknown type"),
    ],
)
def test_a_message_of_another_form_is_refused_with_the_reason(
    data: bytes, attributes: dict[str, str], expected: str
) -> None:
    with pytest.raises(CodecError) as caught:
        parse_message("t", data, attributes, recv_ns=RECV_NS)
    assert caught.value.reason == expected
    assert caught.value.prefix == data[:80]


def test_the_symbol_comes_from_the_attribute_before_the_body() -> None:
    assert parse_bar({**BODY, "symbol": "MSFT"}, symbol="BTC-USD").symbol == "BTC/USD"
    assert parse_bar({**BODY, "symbol": "btc/usd"}, symbol="").symbol == "BTC/USD"
    assert parse_bar(BODY, symbol="brk.b").symbol == "BRK.B"


@pytest.mark.parametrize(("symbol", "expected"), [("", "missing symbol"), ("A B", "bad symbol"), ("1", "bad symbol")])
def test_a_bar_without_a_symbol_is_refused(symbol: str, expected: str) -> None:
    assert reason(BODY, symbol=symbol) == expected


def test_a_bar_without_timestamp_ends_at_the_time_of_receipt() -> None:
    body = {key: value for key, value in BODY.items() if key != "timestamp"}
    assert parse_bar(body).end_ns == RECV_NS
    assert parse_bar(body).ts_event_ns == RECV_NS - MINUTE_NS


def test_the_bar_has_the_length_that_is_given() -> None:
    envelope = parse_message("t", json.dumps(BODY).encode(), {"symbol": "A"}, recv_ns=0, length_ns=5 * MINUTE_NS)
    assert isinstance(envelope.message, Bar)
    assert envelope.message.end_ns == START_NS + 5 * MINUTE_NS


@pytest.mark.parametrize(
    ("text", "offset_ns"),
    [
        ("2024-01-02T14:30:00Z", 0),
        ("2024-01-02T14:30:00", 0),
        ("2024-01-02 14:30:00", 0),
        ("2024-01-02T14:30Z", 0),
        ("20240102T143000Z", 0),
        ("2024-01-02T09:30:00-05:00", 0),
        ("2024-01-02T20:00:00+0530", 0),
        ("2024-01-02T15:30:00+01", 0),
        ("2024-01-02t14:30:00z", 0),
        ("2024-01-02T14:30:00.000000001Z", 1),
        ("2024-01-02T14:30:00.123456789Z", 123_456_789),
        ("2024-01-02T14:30:00.1", 100_000_000),
        ("2024-01-02T14:30:00,25Z", 250_000_000),
        ("2024-01-02T14:30:00.1234567899999Z", 123_456_789),
    ],
)
def test_iso_8601_times_are_read_to_the_nanosecond(text: str, offset_ns: int) -> None:
    assert parse_time(text) == START_NS + offset_ns


def test_a_date_alone_is_its_midnight() -> None:
    assert parse_time("1970-01-02") == 86_400_000_000_000


@pytest.mark.parametrize(
    "text",
    ["", "x", "2024-13-01", "2024-02-30T00:00:00Z", "2024-01-02T24:00:00Z", "2024-01-02T14:60:00Z", "1704205800",
     "2024-01-02T14:30:61Z", "1969-12-31T23:59:59Z", "2300-01-01", "0000-01-01", "٢٠٢٤-01-02",
     "2024-01-02T14:30:00+25:00"],
)  # fmt: skip
def test_what_is_no_time_in_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no ISO 8601 time|outside 1970 to 2262|out of range|month must|day"):
        parse_time(text)
    assert reason({**BODY, "timestamp": text}) == "bad timestamp"


@pytest.mark.parametrize("timestamp", [1704205800, 1.5, True, [], {}])
def test_a_timestamp_that_is_no_text_is_refused(timestamp: object) -> None:
    assert reason({**BODY, "timestamp": timestamp}) == "bad timestamp"


@given(times)
def test_a_written_time_is_read_back_and_other_readers_agree(time_ns: int) -> None:
    text = encode_time(time_ns)
    assert parse_time(text) == time_ns
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)
    assert datetime.fromisoformat(text) == whole
    assert re.fullmatch(r"[^.]+(\.(\d{3}){1,3})?Z", text)


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.timezones()))
def test_times_with_a_zone_equal_pythons_own_reading(moment: datetime) -> None:
    offset = moment.utcoffset()
    assert offset is not None
    if offset.seconds % 60 or offset.microseconds:
        return  # local mean time of the nineteenth century
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    assert parse_time(moment.isoformat()) == expected


def test_extra_fields_are_the_numeric_ones_with_a_usable_name() -> None:
    body = {
        **BODY, "type": "bar", "symbol": "AAPL", "source": "alpaca_stock", "revision": 0, "vwap": 1.25,
        "trade_count": 7,
        "rsi": 55, "sentiment_score": -0.5, "text": "up", "flag": True, "nothing": None, "_hidden": 1, "two words": 1,
        "class": 1, "datetime": 1, "lines": 1, "line3": 1, "nan": math.nan, "infinite": math.inf, "list": [1],
    }  # fmt: skip
    envelope = parse(body)
    assert isinstance(envelope.message, Bar)
    assert envelope.message.extra == {"rsi": 55.0, "sentiment_score": -0.5}
    assert (envelope.message.vwap, envelope.message.trade_count) == (1.25, 7.0)
    assert sorted(envelope.ignored_fields) == sorted(
        ["text", "flag", "_hidden", "two words", "class", "datetime", "lines", "line3", "nan", "infinite", "list"]
    )


def test_extra_fields_that_are_not_finite_are_not_written() -> None:
    bar = parse_bar(BODY)
    payload, _ = encode_bar(
        Bar(
            symbol="A",
            ts_event_ns=0,
            open=1,
            high=1,
            low=1,
            close=1,
            volume=1,
            vwap=math.nan,
            extra={"rsi": math.nan, "macd": math.inf, "close": 9.0, "ok": 1.0},
        )
    )
    assert bar.extra == {}
    body = json.loads(payload)
    assert body["close"] == 1
    assert set(body) == {"type", "symbol", "timestamp", "open", "high", "low", "close", "volume", "ok"}


class _Feed(bt.DataBase):
    def _load(self) -> bool:
        return False


def test_no_extra_field_has_the_name_of_a_backtrader_line_or_attribute() -> None:
    cerebro = bt.Cerebro(stdstats=False)
    feed = _Feed()
    cerebro.adddata(feed)
    cerebro.addstrategy(bt.Strategy)
    cerebro.run()
    taken = {name for name in (*dir(feed), *vars(feed), *dir(feed.lines)) if not name.startswith("_")}
    assert len(taken) > 100
    assert [name for name in sorted(taken) if is_extra_name(name)] == []
    assert not is_extra_name("tick_close")  # Backtrader sets it while it replays


@pytest.mark.parametrize("name", ["rsi", "macd", "sentiment_score", "vwap", "trade_count", "date", "line", "spread"])
def test_ordinary_names_are_extra_names_unless_reserved(name: str) -> None:
    assert is_extra_name(name) is (name not in RESERVED_NAMES)
    assert is_extra_name(name) is (name != "line")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"epoch": "e1", "seq": "7"}, ("e1", 7)),
        ({"epoch": "e1"}, ("", 0)),
        ({"seq": "7"}, ("", 0)),
        ({"epoch": "e1", "seq": "-7"}, ("", 0)),
        ({"epoch": "e1", "seq": "seven"}, ("", 0)),
        ({"epoch": "e1", "seq": "9" * 40}, ("", 0)),
    ],
)
def test_messages_are_numbered_only_with_a_whole_epoch_and_seq(
    attributes: dict[str, str], expected: tuple[str, int]
) -> None:
    envelope = parse(BODY, **attributes)
    assert (envelope.epoch, envelope.seq) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"slice": 0},
        {"slice": None},
        {"bars": -1},
        {"bars": "x"},
        {"end": "x"},
        {"end": None},
        {"event_id": 7},
        {"last": 1},
    ],
)
def test_a_watermark_with_a_bad_field_is_refused(change: dict[str, object]) -> None:
    good = {"type": "watermark", "slice": 1, "end": "2024-01-02T14:31:00Z", "bars": 2, "event_id": ""}
    assert parse(good).message == Watermark(slice=1, end_ns=START_NS + MINUTE_NS, bars=2)
    assert reason({**good, **change}) == "bad watermark"


def test_the_last_watermark_says_so_and_others_leave_the_key_out() -> None:
    mark = Watermark(slice=3, end_ns=START_NS, bars=0, last=True)
    assert json.loads(encode_watermark(mark)[0])["last"] is True
    assert "last" not in json.loads(encode_watermark(Watermark(slice=3, end_ns=START_NS, bars=0))[0])


def test_news_needs_a_headline_and_a_list_of_symbols() -> None:
    assert parse({"type": "news", "headline": "h", "symbols": ["aapl", 7]}).message == News(
        symbols=("AAPL",), headline="h", ts_recv_ns=RECV_NS
    )
    assert reason({"type": "news", "symbols": ["AAPL"]}) == "bad news"
    assert reason({"type": "news", "headline": "h", "symbols": "AAPL"}) == "bad news"


def test_a_batch_comes_back_as_its_bars() -> None:
    bars = [
        Bar(symbol="AAPL", ts_event_ns=60_000_000_000, open=1.0, high=2.0, low=0.5, close=1.5, volume=3.0),
        Bar(symbol="BTC/USD", ts_event_ns=0, open=9.0, high=9.0, low=9.0, close=9.0, volume=0.5, extra={"rsi": 50.0}),
    ]
    data, attributes = encode_batch(bars, epoch="e", seq=7)
    assert attributes == {"encoding": "batch", "epoch": "e", "seq": "7"}
    envelope = parse_message("t", data, attributes, recv_ns=0)
    assert (envelope.epoch, envelope.seq) == ("e", 7)
    assert isinstance(envelope.message, BarBatch)
    assert [encode_bar(bar) for bar in envelope.message.bars] == [encode_bar(bar) for bar in bars]
    assert envelope.message.dropped == ()


@pytest.mark.parametrize("extra", [{}, {"score": 0.5}])
def test_when_the_hub_received_a_bar_comes_with_it(extra: dict[str, float]) -> None:
    bar = msgspec.structs.replace(parse_bar(BODY), extra=extra)
    assert "hub_ns" not in encode_bar(bar)[1]
    for data, attributes in (encode_bar(bar, hub_ns=17), encode_batch([bar, bar], hub_ns=17)):
        message = parse_message("t", data, attributes, recv_ns=RECV_NS).message
        assert {each.ts_hub_ns for each in (message.bars if isinstance(message, BarBatch) else (message,))} == {17}


@pytest.mark.parametrize("text", ["", "soon", "-1", "1" * 20, "²"])
def test_a_time_of_the_hub_that_is_none_is_left_out(text: str) -> None:
    assert parse_bar(BODY, hub_ns=text).ts_hub_ns == 0


def test_an_entry_of_a_batch_that_cannot_be_used_leaves_the_others() -> None:
    good = encode_bar(Bar(symbol="A", ts_event_ns=0, open=1.0, high=1.0, low=1.0, close=1.0, volume=1.0))[0]
    data = b"[7," + good + b',{"symbol":"A"},{"type":"news"},' + good.replace(b'"A"', b'"??"') + b"]"
    message = parse_message("t", data, {"encoding": "batch", "symbol": "B"}, recv_ns=0).message
    assert isinstance(message, BarBatch)
    assert [bar.symbol for bar in message.bars] == ["A"]
    assert message.dropped == ("not a JSON object", "missing price", "unknown type", "bad symbol")


odd_numbers = (
    st.sampled_from(
        [1, 2.5, 0, -1, -0.0, "3.5", "x", None, True, 10**400, 1e308, 10**17, 1.5e300, [], {}, "1e999", 2**63]
    )
    | st.floats()
)
bar_bodies = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(["AAPL", "BTC-USD", "btc/usd", "??", "", None, 7]),
        "timestamp": st.sampled_from(["2024-01-02T14:30:00Z", "2024-01-02", "yesterday", None, 5]),
        **dict.fromkeys(("open", "high", "low", "close"), st.sampled_from([1, 2.5]) | odd_numbers),
    },
    optional={
        "volume": odd_numbers,
        "type": st.sampled_from(["bar", "news", None, 3]),
        "vwap": odd_numbers,
        "trade_count": odd_numbers,
        "source": st.sampled_from(["alpaca_stock", None, 3]),
        "revision": odd_numbers,
        "rsi": odd_numbers,
    },
)


def outcome(data: bytes, attributes: dict[str, str]) -> object:
    try:
        return parse_message("t", data, attributes, recv_ns=RECV_NS)
    except CodecError as error:
        return error.reason


@given(st.lists(bar_bodies, max_size=3), st.sampled_from([{}, {"symbol": "SPY"}, {"type": "bar"}, {"type": "news"}]))
def test_bars_of_the_usual_form_are_read_as_all_others_are(
    bodies: list[dict[str, object]], attributes: dict[str, str]
) -> None:
    def outcomes() -> list[object]:
        single = [outcome(json.dumps(body).encode(), attributes) for body in bodies]
        return [*single, outcome(json.dumps(bodies).encode(), {**attributes, "encoding": "batch"})]

    found = outcomes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pubsub, "_read_plain", lambda *_, **__: None)
        patch.setattr(pubsub, "_read_plain_batch", lambda *_, **__: None)
        assert found == outcomes()
