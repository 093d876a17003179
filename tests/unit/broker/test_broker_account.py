"""The broker beside its orders: start and stop, the cached account, what is refused, cancellation, times, lock-step."""

from __future__ import annotations

import datetime as dt
import socket
from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.clock import ManualClock
from dry_work.errors import BrokerUnavailableError, ConfigError, VenueAuthError
from dry_work.feeds.base import LiveFeed
from dry_work.orders.model import VenuePosition
from dry_work.wakeup import Wakeup
from dry_work.wire.alpaca_rest import encode_error

from .conftest import build_broker
from .scripted_venue import NOW_NS, ScriptedVenue, foreign_request, wait_until
from .stepping import Recorder, StepFeed, buy, run, seen, settle

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS


# Construction and start


@pytest.mark.parametrize(
    "given", [{}, {"api_key": "KEY"}, {"secret_key": "SECRET"}, {"api_key": "", "secret_key": "S"}]
)
def test_a_missing_credential_is_a_value_error(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="ALPACA_API_KEY and ALPACA_SECRET_KEY"):
        AlpacaPaperTradingBroker(**given)


def test_an_account_of_the_broker_api_is_a_uuid() -> None:
    with pytest.raises(ConfigError, match=r"ALPACA_ACCOUNT_ID 'x': .* a UUID\. Unset it to trade with the key's own"):
        AlpacaPaperTradingBroker(api_key="KEY", secret_key="SECRET", account_id="x")


def test_the_broker_api_needs_a_word_for_real_money_too() -> None:
    with pytest.raises(ConfigError, match="real money"):
        AlpacaPaperTradingBroker(
            api_key="KEY",
            secret_key="SECRET",
            account_id="0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8",
            url_override="https://broker-api.alpaca.markets",
        )


def test_real_money_needs_a_word() -> None:
    with pytest.raises(ConfigError, match="real money"):
        AlpacaPaperTradingBroker(api_key="KEY", secret_key="SECRET", url_override="https://api.alpaca.markets/")


def test_an_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        AlpacaPaperTradingBroker(api_key="KEY", secret_key="SECRET", sandboks=True)


def test_refused_credentials_end_the_start(venue: ScriptedVenue, broker: Any) -> None:
    venue.credentials_are_good = False
    with pytest.raises(VenueAuthError, match="refused") as caught:
        broker.start()
    assert "SECRET" not in str(caught.value)
    assert broker.halted


def test_a_stream_that_does_not_listen_ends_the_start(
    venue: ScriptedVenue, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dry_work.broker.venue_link.START_TIMEOUT_S", 0.3)
    venue.listens = False
    with pytest.raises(BrokerUnavailableError, match=r"/stream was not listening after"):
        broker.start()


def test_a_venue_that_is_not_there_ends_the_start(
    venue: ScriptedVenue, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dry_work.broker.venue_link.START_TIMEOUT_S", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        broker = build_broker(venue, journal, url_override=f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(BrokerUnavailableError, match="could not be reached at the start"):
            broker.start()
    broker.stop()
    broker.stop()


def test_start_and_stop_may_be_repeated(venue: ScriptedVenue, broker: Any) -> None:
    for _ in range(2):
        broker.start()
        broker.start()
        assert broker.startingcash == broker.startingvalue == 100_000
        broker.stop()
        broker.stop()
    assert venue.streams == 2


def test_open_orders_of_an_earlier_run_are_counted_and_left(venue: ScriptedVenue, broker: Any) -> None:
    broker.start()
    order = build_request(broker)
    venue.build_event("new", order)
    broker.stop()
    broker.start()
    assert broker.counters["open orders of an earlier run"] == 1
    assert venue.count("DELETE", "/") == 0


def build_request(broker: Any) -> Any:
    from msgspec.structs import replace

    return replace(foreign_request("AAPL"), client_order_id=f"dw-{broker.p.agent}-old-7")


# The account


def test_the_account_is_read_without_io(venue: ScriptedVenue, broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(4), avg_entry_price=Decimal(9))]
    found: list[Any] = []

    def look(strategy: Any) -> None:
        def forbid(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("I/O on the engine's thread")

        requests = len(venue.requests)
        with monkeypatch.context() as blocked:
            for name in ("connect", "send", "sendall", "recv"):
                blocked.setattr(socket.socket, name, forbid)
            broker, data = strategy.broker, strategy.data
            found.extend([broker.getcash(), broker.get_cash(), broker.getvalue(), broker.get_value(), broker.fundvalue])
            found.extend([broker.getvalue([data]), broker.getposition(data).size, broker.positions[data].price])
        assert len(venue.requests) == requests

    run(broker, {3: look}, bars=3)
    assert found == [100_000, 100_000, 100_052, 100_052, 100_052, 52, 4, 9]


def test_a_position_is_one_over_clones_and_spellings(venue: ScriptedVenue, broker: Any) -> None:
    venue.positions = [VenuePosition(symbol="BTC/USD", qty=Decimal("0.5"), avg_entry_price=Decimal(60_000))]
    sizes: list[float] = []

    def look(strategy: Any) -> None:
        sizes.extend(strategy.getposition(data).size for data in strategy.datas)
        sizes.append(strategy.broker.position_of("btc/usd"))
        assert broker.getposition(strategy.datas[0], clone=False) is broker.getposition(strategy.datas[1], clone=False)
        assert broker.getposition(strategy.datas[0]) is not broker.getposition(strategy.datas[0])

    run(broker, {2: look}, symbols=("BTC/USD", "BTCUSD"), resample=True)
    assert sizes == [0.5] * 5


def test_live_feeds_say_their_symbol_themselves(venue: ScriptedVenue, broker: Any) -> None:
    venue.positions = [VenuePosition(symbol="BTC/USD", qty=Decimal(2), avg_entry_price=Decimal(1))]
    broker.start()
    feed = LiveFeed(symbol="BTC/USD", name="coin")
    cerebro = bt.Cerebro()
    cerebro.adddata(feed)
    cerebro.resampledata(feed, name="coin@5m", timeframe=bt.TimeFrame.Minutes, compression=5)
    broker._book.take_snapshot(broker._link._fetch(0))
    assert [broker.getposition(data).size for data in cerebro.datas] == [2, 2]


def test_a_position_from_before_is_part_of_the_trades(venue: ScriptedVenue, broker: Any) -> None:
    venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(4), avg_entry_price=Decimal(9))]

    def fill() -> None:
        order = venue.wait_submit(1)
        seen(venue, broker, venue.build_event("fill", order, qty="4", price="11"))

    strategy = run(broker, {1: lambda s: s.close()}, {2: fill})
    assert [status for _, status in strategy.told] == ["Submitted", "Accepted", "Completed"]
    [trade] = [trade for trade in strategy.trades if trade.isclosed]
    assert trade.pnl == 8


def test_equity_moves_with_the_close_of_the_bars(venue: ScriptedVenue, broker: Any) -> None:
    values: list[float] = []

    def fill() -> None:
        order = venue.wait_submit(1)
        seen(venue, broker, venue.build_event("fill", order, qty="10", price="12"))

    note = lambda strategy: values.append(strategy.broker.getvalue())  # noqa: E731
    run(broker, {1: buy(size=10), 2: note, 3: note}, {2: fill})
    assert values == [100_000, 100_010]


def test_a_snapshot_is_taken_over_when_no_fill_came(venue: ScriptedVenue, journal: Any, quick_keeper: None) -> None:
    broker = build_broker(venue, journal)
    broker.start()
    venue.cash = Decimal(123)
    venue.positions = [VenuePosition(symbol="IBM", qty=Decimal(-3), avg_entry_price=Decimal(7))]
    broker.refresh_account()
    wait_until(lambda: len(broker._link.inbox), "the snapshot is in")
    assert broker.getcash() == 100_000

    def is_taken() -> bool:
        broker.next()  # what explains the position is asked for first
        return bool(broker.getcash() == 123)

    wait_until(is_taken, "the snapshot is taken over")
    assert (broker.position_of("IBM"), broker.getvalue()) == (-3, 102)
    broker.stop()


def test_a_snapshot_from_before_a_fill_is_not_taken_over(
    venue: ScriptedVenue, journal: Any, quick_keeper: None
) -> None:
    broker = build_broker(venue, journal)
    broker.start()
    broker.refresh_account()
    wait_until(lambda: len(broker._link.inbox), "the snapshot is in")
    seen(venue, broker, venue.build_event("fill", foreign_request("AAPL"), qty="1", price="50"))
    broker.next()
    assert broker.getcash() == 99_950
    broker.stop()


def test_an_order_that_the_stream_forgot_is_found_by_a_snapshot(
    venue: ScriptedVenue, journal: Any, quick_keeper: None
) -> None:
    broker = build_broker(venue, journal)

    def forget() -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        settle(broker)
        venue.build_event("fill", order, qty="2", price="10")
        venue.cash = Decimal(99_980)
        venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(2), avg_entry_price=Decimal(10))]
        broker.refresh_account()
        wait_until(
            lambda: any(type(item).__name__ == "AccountState" for item in broker._link.inbox), "the snapshot is in"
        )

    def see() -> None:
        settle(broker)
        wait_until(lambda: not any(type(i).__name__ == "OrderTaken" for i in broker._link.inbox), "the look-up is in")

    def refreshed() -> None:
        wait_until(
            lambda: any(type(item).__name__ == "AccountState" for item in broker._link.inbox), "another snapshot"
        )

    strategy = run(broker, {1: buy(size=2)}, {2: forget, 3: see, 5: refreshed})
    assert strategy.statuses(strategy.orders[0])[-1] == "Completed"
    assert broker.counters["stream restarts"] == 1
    assert (broker.getcash(), broker.position_of("AAPL")) == (99_980, 2)
    broker.stop()


@pytest.fixture
def quick_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.broker.account.TICK_S", 0.01)
    monkeypatch.setattr("dry_work.broker.account.SETTLE_S", 0.01)


def test_without_snapshots_no_orders_are_taken_until_one_succeeds(
    venue: ScriptedVenue, journal: Any, quick_keeper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = build_broker(venue, journal, refresh_s=0.02)

    def lose() -> None:
        venue.fail_account = (500, encode_error(50010000, "internal server error occurred"))
        wait_until(lambda: broker.halted, "orders are halted")

    def recover() -> None:
        venue.fail_account = None
        wait_until(lambda: not broker.halted, "orders are taken again")

    strategy = run(broker, {2: buy(size=1), 4: buy(size=1)}, {2: lose, 4: recover, 6: lambda: venue.wait_submit(1)})
    first, second = strategy.orders
    assert strategy.statuses(first) == ["Rejected"]
    assert "the account cannot be refreshed" in first.info.reject_reason
    assert first.info.reject_code == "not_trading"
    assert strategy.statuses(second)[0] == "Submitted"
    assert broker.getcash() == 100_000
    broker.stop()


# Refusals


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"exectype": bt.Order.Close, "tif": "day"}, "Close"),
        ({"exectype": bt.Order.StopTrail}, "StopTrail"),
        ({"exectype": bt.Order.StopTrailLimit, "trailpercent": 0.02, "plimit": 9.0}, "StopTrailLimit"),
        ({"exectype": bt.Order.Limit, "price": -1.0}, "limit price"),
        ({"size": 1e-12}, "size"),
        ({"notional": 0.5}, "value"),
    ],
)
def test_what_is_not_offered_comes_back_rejected(
    venue: ScriptedVenue, broker: Any, asked: dict[str, Any], word: str
) -> None:
    statuses: list[int] = []

    def place(strategy: Any) -> Any:
        order = strategy.sell(**{"size": 1, **asked})
        statuses.append(order.status)
        assert not strategy.broker.cancel(order)
        return order

    strategy = run(broker, {2: place})
    [order] = strategy.orders
    assert statuses == [bt.Order.Rejected]
    assert strategy.statuses(order) == ["Rejected"]
    assert word in order.info.reject_reason
    assert order.info.reject_code
    assert venue.submits == []


def test_an_order_before_the_first_bar_comes_back_rejected(venue: ScriptedVenue, broker: Any) -> None:
    kept: list[Any] = []

    def early(strategy: Any) -> None:
        kept.append(strategy.buy(size=1, exectype=bt.Order.Limit, price=5.0, valid=bt.Order.DAY))

    strategy = run(broker, {}, early=early)
    assert strategy.statuses(kept[0]) == ["Rejected"]
    assert kept[0].info.reject_code == "no_bar_yet"


# Cancellation and time in force


def test_a_cancellation_is_told_when_the_venue_says_so(venue: ScriptedVenue, broker: Any) -> None:
    answers: list[bool] = []

    def accept() -> None:
        seen(venue, broker, venue.build_event("new", venue.wait_submit(1)))

    def cancel(strategy: Any) -> None:
        answers.extend([broker.cancel(strategy.orders[0]), broker.cancel(strategy.orders[0])])

    def confirm() -> None:
        wait_until(lambda: venue.count("DELETE", "/v2/orders/taken-dw-tester-s-1"), "the cancellation")
        seen(venue, broker, venue.build_event("canceled", venue.submits[0]))

    strategy = run(broker, {1: buy(size=1, exectype=bt.Order.Limit, price=5.0), 2: cancel}, {2: accept, 4: confirm})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Canceled"]
    assert answers == [True, False]
    assert not broker.cancel(strategy.orders[0])
    assert broker.get_orders_open() == []


def test_a_refused_cancellation_is_followed_by_a_look_up(venue: ScriptedVenue, broker: Any) -> None:
    venue.fail_cancel = (422, encode_error(42210000, 'order is already in "filled" state'))

    def cancel(strategy: Any) -> None:
        order = venue.wait_submit(1)
        wait_until(lambda: order.client_order_id in venue.orders, "the order is taken")
        venue.build_event("fill", order, qty="1", price="10")  # told by nobody
        broker.cancel(strategy.orders[0])

    scripts = {3: lambda: settle(broker), 4: lambda: settle(broker)}
    strategy = run(broker, {1: buy(size=1), 2: cancel}, scripts)
    assert strategy.statuses(strategy.orders[0])[-1] == "Completed"
    assert venue.count("DELETE", "/") == 1


@pytest.mark.parametrize(
    ("symbol", "valid", "time_in_force"),
    [
        ("AAPL", None, "gtc"),
        ("AAPL", 0, "day"),
        ("AAPL", 0.0, "day"),
        ("AAPL", bt.Order.DAY, "day"),
        ("AAPL", dt.datetime(2030, 1, 1), "gtc"),
        ("AAPL", dt.date(2030, 1, 1), "gtc"),
        ("AAPL", dt.timedelta(days=9000), "gtc"),
        ("BTC/USD", 0, "gtc"),
        ("BTC/USD", None, "gtc"),
    ],
)
def test_valid_becomes_a_time_in_force(
    venue: ScriptedVenue, journal: Any, symbol: str, valid: Any, time_in_force: str
) -> None:
    broker = build_broker(venue, journal, clock=ManualClock(NOW_NS))
    order = buy(size=2, exectype=bt.Order.Limit, price=5.0, valid=valid)
    run(broker, {1: order}, {2: lambda: venue.wait_submit(1)}, symbols=(symbol,))
    assert venue.submits[0].time_in_force == time_in_force
    assert venue.count("DELETE", "/") == 0


@pytest.mark.parametrize(
    ("symbol", "valid", "passed_s"),
    [("AAPL", dt.datetime(2024, 6, 11, 13, 40), 601), ("BTC/USD", bt.Order.DAY, 86_400)],
)
def test_an_order_is_canceled_at_its_date_and_told_as_expired(
    venue: ScriptedVenue, journal: Any, symbol: str, valid: Any, passed_s: int
) -> None:
    clock = ManualClock(NOW_NS)
    broker = build_broker(venue, journal, clock=clock, wakeup=Wakeup())

    def accept() -> None:
        seen(venue, broker, venue.build_event("new", venue.wait_submit(1)))
        settle(broker)
        while broker.p.wakeup.wait(0.0):
            pass

    def pass_time() -> None:
        assert venue.count("DELETE", "/") == 0
        clock.advance(passed_s)
        assert broker.p.wakeup.wait(60.0)

    def confirm() -> None:
        wait_until(lambda: venue.count("DELETE", "/v2/orders/taken-"), "the cancellation")
        seen(venue, broker, venue.build_event("canceled", venue.submits[0]))

    order = buy(size=1, exectype=bt.Order.Limit, price=5.0, valid=valid)
    strategy = run(broker, {1: order}, {2: accept, 4: pass_time, 5: confirm}, symbols=(symbol,))
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Expired"]
    assert broker.results()[0][0]["status"] == "expired"


def test_an_order_whose_date_has_passed_is_not_sent(venue: ScriptedVenue, broker: Any) -> None:
    order = buy(size=1, exectype=bt.Order.Limit, price=5.0, valid=dt.datetime(2020, 1, 1))
    strategy = run(broker, {1: order})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Expired"]
    assert venue.submits == []


# Lock-step


def build_lockstep(venue: ScriptedVenue, journal: Any, **params: Any) -> Any:
    return build_broker(venue, journal, lockstep=True, consumer="me", **params)


def test_in_lock_step_the_answer_to_a_submit_changes_nothing(venue: ScriptedVenue, journal: Any) -> None:
    async def accepted(request: Any, number: int) -> None:
        venue.build_event("accepted", request)

    venue.on_submit = accepted
    broker = build_lockstep(venue, journal)
    strategy = run(broker, {1: buy(size=1)}, {2: lambda: settle(broker)})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted"]


def test_a_slice_is_reported_behind_its_orders(venue: ScriptedVenue, journal: Any) -> None:
    venue.on_submit = lambda request, number: (422, encode_error(42210000, "no")) if number == 2 else None
    broker = build_lockstep(venue, journal)

    def place(strategy: Any) -> None:
        for _ in range(3):
            strategy.buy(size=1)
        strategy.buy(size=1, exectype=bt.Order.StopTrailLimit, plimit=1.0)
        broker.end_slice(7)
        broker.end_slice(8)

    run(broker, {2: place}, {4: lambda: settle(broker)})
    assert venue.reports == [(7, {"consumer": "me", "orders": 3}), (8, {"consumer": "me", "orders": 0})]
    posts = [path for method, path in venue.requests if method == "POST"]
    assert posts == ["/v2/orders"] * 3 + ["/dry-work/v1/slices/7/done", "/dry-work/v1/slices/8/done"]


def test_a_cancellation_is_told_where_it_was_asked_for(venue: ScriptedVenue, journal: Any) -> None:
    broker = build_lockstep(venue, journal)

    def accept() -> None:
        seen(venue, broker, venue.build_event("new", venue.wait_submit(1)))

    def replace(strategy: Any) -> Any:
        second = strategy.buy(size=2)
        broker.cancel(strategy.orders[0])
        third = strategy.buy(size=3)
        return [second, third]

    def confirm() -> None:
        events = [venue.build_event("canceled", venue.wait_submit(1))]
        events += [venue.build_event("new", venue.wait_submit(number)) for number in (2, 3)]
        seen(venue, broker, *events)

    strategy = run(broker, {1: buy(size=1), 2: replace}, {2: accept, 3: confirm})
    first = strategy.orders[0].ref
    assert strategy.told == [
        (first, "Submitted"), (first, "Accepted"),
        (first + 1, "Submitted"), (first, "Canceled"), (first + 2, "Submitted"),
        (first + 1, "Accepted"), (first + 2, "Accepted"),
    ]  # fmt: skip


def test_a_refused_cancellation_in_lock_step_is_told_by_nobody(venue: ScriptedVenue, journal: Any) -> None:
    venue.fail_cancel = (422, encode_error(42210000, "order is not checked yet"))
    broker = build_lockstep(venue, journal)

    def place(strategy: Any) -> Any:
        order = strategy.buy(size=1)
        broker.cancel(order)
        return order

    def accept() -> None:
        order = venue.wait_submit(1)
        settle(broker)
        seen(venue, broker, venue.build_event("new", order))

    strategy = run(broker, {1: place}, {2: accept, 4: lambda: settle(broker)})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted"]
    assert venue.count("GET", "/v2/orders:by") == 0


def test_has_seen_knows_the_events_up_to_the_last(venue: ScriptedVenue, journal: Any) -> None:
    wakeup = Wakeup()
    broker = build_lockstep(venue, journal, wakeup=wakeup)
    broker.start()
    assert broker.has_seen("")
    event = venue.build_event("fill", foreign_request("AAPL"), qty="1", price="5")
    assert not broker.has_seen(event.event_id)
    venue.send(event)
    assert wakeup.wait(60.0)
    wait_until(lambda: broker.has_seen(event.event_id), "the event is in")
    assert broker.has_seen("E00000000")
    assert broker.getcash() == 100_000  # until `next`
    broker.next()
    assert broker.getcash() == 99_995
    broker.stop()


def test_in_lock_step_an_order_expires_before_the_bar_behind_its_date(venue: ScriptedVenue, journal: Any) -> None:
    broker = build_lockstep(venue, journal)
    first_ns = NOW_NS + MINUTE_NS

    class Slices(Recorder):
        def next(self) -> None:
            super().next()
            broker.end_slice(self.number)

    def at(number: int) -> None:
        broker.slice_end_ns = first_ns + (number - 1) * MINUTE_NS

    order = buy(size=1, exectype=bt.Order.Limit, price=5.0, valid=dt.datetime(2024, 6, 11, 13, 33, 30))
    deletes: list[int] = []

    def step(number: int) -> Any:
        def script() -> None:
            at(number)
            settle(broker)
            deletes.append(venue.count("DELETE", "/"))
            if number == 2:
                seen(venue, broker, venue.build_event("new", venue.wait_submit(1)))
            if number == 4:
                seen(venue, broker, venue.build_event("canceled", venue.submits[0]))

        return script

    cerebro = bt.Cerebro(stdstats=False, preload=False, runonce=False)
    cerebro.adddata(StepFeed(bars=5, before=lambda number: step(number)()), name="AAPL")
    cerebro.setbroker(broker)
    cerebro.addstrategy(Slices, actions={1: order})
    [strategy] = cerebro.run()
    # The bar that ends at 13:33 is the last one before 13:33:30.
    assert deletes == [0, 0, 0, 1, 1]
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Expired"]


# Faults


def test_a_dead_thread_is_a_failure_and_orders_are_refused(venue: ScriptedVenue, broker: Any) -> None:
    def kill() -> None:
        venue.send_frame(b"[]")
        broker._link._stream._on_event = None  # the next event kills the thread
        venue.send(venue.build_event("fill", foreign_request("AAPL"), qty="1", price="5"))
        wait_until(lambda: broker.failure is not None, "the failure is seen")

    strategy = run(broker, {2: buy(size=1)}, {2: kill})
    assert strategy.statuses(strategy.orders[0]) == ["Rejected"]
    assert "failed" in strategy.orders[0].info.reject_reason
    assert isinstance(broker.failure, TypeError)


def test_secrets_are_in_no_repr_log_or_journal(
    venue: ScriptedVenue, broker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        seen(venue, broker, venue.build_event("rejected", venue.wait_submit(1), message="no"))
        venue.drop_streams()
        wait_until(lambda: venue.streams == 2, "the stream is back")
        settle(broker)

    run(broker, {1: buy(size=1)}, {2: refuse})
    link = broker._link
    said = [repr(thing) for thing in (broker, link, link._stream, link._order_api, link.gateway)]
    said.append(capsys.readouterr().out)
    said.append(b"".join(path.read_bytes() for path in broker.p.journal.path.parent.iterdir()).decode("latin-1"))
    assert not any("SECRET" in text for text in said)
