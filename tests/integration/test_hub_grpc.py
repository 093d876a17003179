"""The streams of the hub's gRPC port: what they bring, what they hold upstream, how they go on."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import grpc
import pytest
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, TimeInForce
from alpaca.trading.requests import LimitOrderRequest

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.sinks.grpc_settings import GrpcSettings

from .alpaca_upstream import KEY, SECRET, wait_until
from .grpc_stack import (
    OPTION,
    OPTIONS,
    OTHER_OPTION,
    TIME,
    Stack,
    ask_status,
    make_order,
    make_quote,
    make_stubs,
    make_trade,
    stamp,
)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_stubs(tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def stack(stubs: SimpleNamespace) -> Iterator[Stack]:
    stack = Stack(stubs)
    yield stack
    stack.close()


# --- the six streams


def test_quotes_trades_and_bars_of_stocks_reach_those_who_asked(stack: Stack) -> None:
    stack.start()
    quotes = stack.call("StreamQuotes", symbols=["aapl"])
    trades = stack.call("StreamTrades", symbols=["AAPL", "Ibm"])
    bars = stack.call("StreamBars")
    stack.wait_held("quotes", {"AAPL"})
    stack.wait_held("trades", {"AAPL", "IBM"})
    stack.wait_held("bars", {"*"})
    bar = {"T": "b", "S": "MSFT", "o": 1, "h": 3, "l": 0.5, "c": 2, "v": 9.75, "n": 4, "vw": 1.5, "t": TIME}
    stack.upstream.send([make_quote("IBM", 1.0), make_trade("MSFT", 1), make_trade("IBM", 2), bar])
    stack.upstream.send([{"T": "zz", "S": "AAPL"}, make_quote("AAPL", 7.25)])
    quote, trade, told = next(quotes).quote, next(trades).trade, next(bars).bar
    assert (quote.symbol, quote.bid_price, quote.bid_size, quote.ask_price, quote.tape) == ("AAPL", 7.25, 1, 8.25, "C")
    assert (quote.timestamp.seconds, quote.timestamp.nanos, list(quote.conditions)) == (1704205800, 123456789, ["R"])
    assert (trade.symbol, trade.trade_id, trade.size, trade.exchange) == ("IBM", 2, 3, "V")
    assert (told.symbol, told.volume, told.vwap, told.trade_count) == ("MSFT", 9, 1.5, 4)
    assert stack.sink.losses.rounded == {"StockBar.volume": 1}


def test_quotes_and_trades_of_options_are_filtered_by_symbol_and_by_exact_root(stack: Stack) -> None:
    stack.start()
    quotes = stack.call("StreamOptionQuotes", symbols=[OPTION.lower()])
    by_root = stack.call("StreamOptionTrades", underlyings=["a"])
    either = stack.call("StreamOptionTrades", underlyings=["A"], symbols=[OPTION])
    every = stack.call("StreamOptionTrades")
    stack.wait_held("quotes", {OPTION}, OPTIONS)
    stack.wait_held("trades", {"*"}, OPTIONS)
    trades = [
        {"T": "t", "S": symbol, "p": 2.84, "s": size, "x": "N", "c": "S", "t": stamp()}
        for size, symbol in enumerate((OPTION, "SPY240315C00172500", OTHER_OPTION), 1)
    ]
    quote = {"T": "q", "S": OPTION, "bx": "C", "bp": 1.5, "bs": 10, "ax": "N", "ap": 1.75, "as": 7, "c": "A"}
    stack.upstream.send([*trades, quote | {"t": stamp()}], OPTIONS)
    told = next(quotes).quote
    assert (told.symbol, told.bid_size, told.ask_size, told.condition) == (OPTION, 10, 7, "A")
    assert told.timestamp.nanos == 123_456_789
    assert next(by_root).trade.symbol == OTHER_OPTION
    assert [next(either).trade.size for _ in range(2)] == [1, 3]
    assert [next(every).trade.size for _ in range(3)] == [1, 2, 3]


def test_order_updates_are_filtered_by_order_or_symbol_and_have_one_id_for_all(stack: Stack) -> None:
    stack.start()
    every = stack.call("StreamOrderUpdates")
    one = stack.call("StreamOrderUpdates", order_ids=["O2"], symbols=["btc/usd"])
    orders = [
        make_order("o1"),
        make_order("o2", event="fill", execution_id="x9", price="10.25", qty="2", position_qty="-2"),
        make_order("o3", "BTCUSD", event="order_replace_rejected"),
    ]
    stack.publish_orders(orders)
    first, second, third = (next(every).update for _ in range(3))
    found = [next(one).update for _ in range(2)]
    assert [update.order.id for update in found] == ["o2", "o3"]
    assert [update.event_id for update in found] == [second.event_id, third.event_id] == ["id1", "id2"]
    messages, common = stack.stubs.messages, stack.stubs.common
    assert [first.event, second.event] == [messages.ORDER_EVENT_NEW, messages.ORDER_EVENT_FILL]
    assert (second.execution_id, second.price, second.position_qty) == ("x9", "10.25", "-2")
    assert not first.HasField("execution_id")
    assert (third.event, third.order.status) == (messages.ORDER_EVENT_UNSPECIFIED, "order_replace_rejected")
    assert (third.order.order_type, third.order.time_in_force) == (
        common.ORDER_TYPE_STOP_LIMIT,
        common.TIME_IN_FORCE_GTC,
    )


def test_one_item_that_cannot_be_told_costs_only_itself_and_is_counted_once(stack: Stack) -> None:
    stack.start()
    calls = [stack.call("StreamTrades", symbols=["AAPL"]) for _ in range(2)]
    stack.wait_held("trades", {"AAPL"})
    stack.upstream.send([make_trade("AAPL", 1, p="much"), make_trade("AAPL", 2, s=1.5)])
    assert [next(call).trade.trade_id for call in calls] == [2, 2]
    assert stack.sink.malformed == {"stock_trade: p is no number": 1}
    assert stack.sink.losses.rounded == {"StockTrade.size": 1}
    wait_until(lambda: stack.sink.status().delivered == 2, "both are counted")
    status = stack.sink.status()
    assert (status.offered, status.delivered, status.dropped, status.waiting) == (4, 2, 2, 0)


# --- what is held upstream


def test_the_first_call_subscribes_the_last_one_unsubscribes_and_a_reconnect_restores(stack: Stack) -> None:
    stack.start()
    first = stack.call("StreamTrades", symbols=["AAPL", "IBM"])
    second = stack.call("StreamTrades", symbols=["IBM"])
    stack.wait_held("trades", {"AAPL", "IBM"})
    first.cancel()
    stack.wait_held("trades", {"IBM"})
    stack.upstream.cut()
    stack.wait_held("trades", {"IBM"})
    stack.upstream.send([make_trade("IBM", 5)])
    assert next(second).trade.trade_id == 5
    second.cancel()
    stack.wait_held("trades", set())
    wait_until(lambda: stack.sink.status().clients == 0, "no call is left")


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import grpc
from cream.v1 import stream_proxy_pb2, stream_proxy_pb2_grpc
stub = stream_proxy_pb2_grpc.StreamProxyServiceStub(grpc.insecure_channel(sys.argv[2]))
for response in stub.StreamQuotes(stream_proxy_pb2.StreamQuotesRequest(symbols=["AAPL"])):
    print(response.quote.symbol, flush=True)
"""


@contextlib.contextmanager
def run_child(stack: Stack, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, str(stack.stubs.folder), f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_killed_client_lets_its_symbols_go(stack: Stack) -> None:
    stack.start()
    with run_child(stack, stack.sink.port) as child:
        stack.wait_held("quotes", {"AAPL"})
        stack.upstream.send([make_quote("AAPL", 1.0)])
        assert child.stdout is not None
        assert child.stdout.readline() == "AAPL\n"
        child.send_signal(signal.SIGKILL)
        stack.wait_held("quotes", set())
    assert stack.held("quotes") == set()


def test_a_client_that_falls_silent_lets_its_symbols_go_even_if_nothing_is_sent_to_it(stack: Stack) -> None:
    stack.start(keepalive_s=0.3, keepalive_timeout_s=0.3)
    with run_child(stack, stack.sink.port) as child:
        stack.wait_held("quotes", {"AAPL"})
        child.send_signal(signal.SIGSTOP)  # the connection stays, and nobody answers
        stack.wait_held("quotes", set())
        assert child.poll() is None
    assert stack.held("quotes") == set()


# --- resuming


def test_a_client_that_comes_back_gets_what_it_missed(stack: Stack) -> None:
    stack.start()
    keeper = stack.call("StreamTrades", symbols=["AAPL"], metadata=(("x-dry-work-offsets", "true"),))
    stack.wait_held("trades", {"AAPL"})
    stack.upstream.send([make_trade("AAPL", 1), make_trade("AAPL", 2), make_trade("AAPL", 3)])
    responses = [next(keeper) for _ in range(3)]
    assert [response.offset for response in responses] == [1, 2, 3]
    for epoch, recovered, numbers in (("e1", "true", [2, 3]), ("older", "false", [3])):
        position = (("x-dry-work-epoch", epoch), ("x-dry-work-offset", "1"))
        call = stack.call("StreamTrades", symbols=["AAPL"], metadata=position)
        told = dict(call.initial_metadata())
        assert (told["x-dry-work-epoch"], told["x-dry-work-offset"]) == ("e1", "3")
        assert told["x-dry-work-recovered"] == recovered
        found = [next(call) for _ in numbers]
        assert [response.trade.trade_id for response in found] == numbers
        assert not any(response.offset for response in found)
    snapshot = stack.call("StreamTrades", metadata=(("x-dry-work-snapshot", "true"),))
    assert next(snapshot).trade.trade_id == 3


def test_a_client_can_go_back_as_far_as_the_capacity_of_its_stream_says(stack: Stack) -> None:
    stack.start(settings=GrpcSettings(port=0, stock_trades_capacity=2))
    keeper = stack.call("StreamTrades", symbols=["AAPL"])
    stack.wait_held("trades", {"AAPL"})
    stack.upstream.send([make_trade("AAPL", number) for number in range(1, 5)])
    assert [next(keeper).trade.trade_id for _ in range(4)] == [1, 2, 3, 4]
    for offset, recovered, numbers in (("2", "true", [3, 4]), ("1", "false", [4])):
        position = (("x-dry-work-epoch", "e1"), ("x-dry-work-offset", offset))
        call = stack.call("StreamTrades", symbols=["AAPL"], metadata=position)
        assert dict(call.initial_metadata())["x-dry-work-recovered"] == recovered
        assert [next(call).trade.trade_id for _ in numbers] == numbers


# --- slow clients


def test_a_slow_client_is_told_at_the_end_what_it_lost_and_costs_the_others_nothing(stack: Stack) -> None:
    stack.start()
    slow = stack.call("StreamTrades", symbols=["AAPL"])
    quick = stack.call("StreamTrades", symbols=["AAPL"])
    stack.wait_held("trades", {"AAPL"})
    sent = 0
    pad = "x" * 4_000
    while stack.sink.count_messages()["stock_trade"]["dropped"] < 500:
        stack.upstream.send([make_trade("AAPL", sent + number, x=pad) for number in range(100)])
        sent += 100
        assert [next(quick).trade.trade_id for _ in range(100)] == list(range(sent - 100, sent))
        assert sent < 100_000
    status = stack.sink.status()
    assert status.offered == 2 * sent == status.delivered + status.conflated + status.dropped + status.waiting
    assert status.waiting <= 1_024 + 2
    assert stack.hub is not None
    stopping = threading.Thread(target=stack.hub.stop, args=(20.0,))
    stopping.start()
    numbers = []
    with pytest.raises(grpc.RpcError) as caught:
        numbers.extend(response.trade.trade_id for response in slow)
    stopping.join()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    trailing = dict(caught.value.trailing_metadata())
    assert int(trailing["x-dry-work-dropped"]) == status.dropped
    assert trailing["x-dry-work-conflated"] == "0"


def test_an_order_stream_that_is_not_read_ends_before_it_loses_one_and_goes_on_from_there(stack: Stack) -> None:
    stack.start()
    slow = stack.call("StreamOrderUpdates")
    other = stack.call("StreamOrderUpdates", order_ids=["o5"])
    count = 2_000
    stack.publish_orders([make_order(f"o{number}", pad="x", execution_id="x" * 1_000) for number in range(count)])
    assert next(other).update.order.id == "o5"
    found = []
    with pytest.raises(grpc.RpcError) as caught:
        found.extend(response.update.order.id for response in slow)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = {key: value for key, value in caught.value.trailing_metadata() if key.startswith("x-dry-work")}
    assert trailing["x-dry-work-offset"] == str(len(found))
    position = (
        ("x-dry-work-epoch", trailing["x-dry-work-epoch"]),
        ("x-dry-work-offset", trailing["x-dry-work-offset"]),
    )
    again = stack.call("StreamOrderUpdates", metadata=position)
    rest = [next(again).update.order.id for _ in range(count - len(found))]
    assert [*found, *rest] == [f"o{number}" for number in range(count)]


# --- contracts of an underlying


def test_quotes_by_root_name_the_contracts_that_the_venue_lists(stack: Stack) -> None:
    exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=1)
    exchange.start()
    try:
        stack.start(url=exchange.url)
        call = stack.call("StreamOptionQuotes", underlyings=["spy"], symbols=[OPTION])
        wait_until(lambda: len(stack.held("quotes", OPTIONS)) > 10, "the contracts are held")
        symbols = stack.held("quotes", OPTIONS)
        contract = min(symbols - {OPTION})
        assert {symbol[:-15] for symbol in symbols} == {"SPY", "AAPL"}
        quotes = [make_quote(symbol, 1.0) | {"c": "A"} for symbol in (OTHER_OPTION, contract, OPTION)]
        stack.upstream.send(quotes, OPTIONS)
        assert [next(call).quote.symbol for _ in range(2)] == [contract, OPTION]
        call.cancel()
        stack.wait_held("quotes", set(), OPTIONS)
        stack.close()
    finally:
        exchange.stop()


def test_quotes_by_root_ask_for_all_when_nobody_can_list_the_contracts(stack: Stack) -> None:
    stack.start(url="")
    call = stack.call("StreamOptionQuotes", underlyings=["A"])
    stack.wait_held("quotes", {"*"}, OPTIONS)
    stack.upstream.send([make_quote(symbol, 1.0) | {"c": "A"} for symbol in (OPTION, OTHER_OPTION)], OPTIONS)
    assert next(call).quote.symbol == OTHER_OPTION


# --- order updates of a real account


def test_the_updates_of_an_order_come_from_the_account_with_its_ids(stack: Stack) -> None:
    exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=1)
    exchange.start()
    trader = TradingClient(KEY, SECRET, url_override=exchange.url)
    try:
        stack.start(url=exchange.url)
        messages = stack.stubs.messages
        call = stack.call("StreamOrderUpdates", symbols=["SPY"])
        client = stack.client()
        wait_until(lambda: ask_status(stack, client).feeds[2].state == messages.CONNECTION_STATE_CONNECTED, "connected")
        order = trader.submit_order(
            LimitOrderRequest(symbol="SPY", qty=1, side=OrderSide.BUY, time_in_force=TimeInForce.GTC, limit_price=1.0)
        )
        trader.cancel_order_by_id(order.id)
        updates = []
        while not updates or updates[-1].event != messages.ORDER_EVENT_CANCELED:
            updates.append(next(call).update)
        assert {update.order.id for update in updates} == {str(order.id)}
        assert len({update.event_id for update in updates}) == len(updates)
        last = updates[-1].order
        assert (last.limit_price, last.qty, last.client_order_id) == ("1", "1", order.client_order_id)
    finally:
        trader._session.close()
        stack.close()
        exchange.stop()
