"""The hub's gRPC port: its state, its health, whom it lets in, and how it ends."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import dry_work
from dry_work.errors import ConfigError
from dry_work.hub.access import Access
from dry_work.hub.sinks.grpc_settings import GrpcSettings

from .alpaca_upstream import wait_until
from .certificates import make_certificate
from .grpc_stack import (
    DEADLINE_S,
    OPTION,
    TIME,
    Stack,
    ask_status,
    make_order,
    make_stubs,
    make_trade,
    refusal,
)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_stubs(tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def stack(stubs: SimpleNamespace) -> Iterator[Stack]:
    stack = Stack(stubs)
    yield stack
    stack.close()


# --- status, health, reflection


def test_the_status_has_three_feeds_with_their_true_types_states_and_counts(stack: Stack) -> None:
    stack.start(url="")
    client, messages = stack.client(), stack.stubs.messages
    call = stack.call("StreamBars", symbols=["AAPL", "IBM"])
    stack.upstream.wait_subscribed({"AAPL", "IBM"})
    stack.upstream.send(
        [{"T": "b", "S": "IBM", "o": 1, "h": 3, "l": 0.5, "c": 2, "v": 9, "n": 4, "vw": 1.5, "t": TIME}]
    )
    assert next(call).bar.symbol == "IBM"
    wait_until(lambda: ask_status(stack, client).feeds[0].subscription_count == 2, "the upstream has confirmed")
    status = ask_status(stack, client)
    stocks, options, orders = status.feeds
    assert [feed.feed_type for feed in status.feeds] == [
        messages.FEED_TYPE_IEX,
        messages.FEED_TYPE_INDICATIVE,
        messages.FEED_TYPE_TRADE_UPDATES,
    ]
    assert (stocks.state, stocks.messages_received) == (messages.CONNECTION_STATE_CONNECTED, 1)
    assert 0 <= status.current_time.seconds - stocks.last_connected_at.seconds < 60
    assert not stocks.HasField("error_message")
    assert options.state == orders.state == messages.CONNECTION_STATE_DISCONNECTED
    assert not options.HasField("last_connected_at")
    assert "no credentials" in orders.error_message
    assert (status.client_count, status.environment, status.version) == (
        1,
        stack.stubs.common.ENVIRONMENT_PAPER,
        dry_work.__version__,
    )
    stack.upstream.auth_error = 409
    stack.upstream.cut()
    wait_until(lambda: ask_status(stack, client).feeds[0].state == messages.CONNECTION_STATE_ERROR, "in error")
    failed = ask_status(stack, client).feeds[0]
    assert "409" in failed.error_message
    assert failed.reconnect_attempts >= 1
    stack.upstream.auth_error = 0
    wait_until(lambda: ask_status(stack, client).feeds[0].state == messages.CONNECTION_STATE_CONNECTED, "again")
    assert ask_status(stack, client).feeds[0].reconnect_attempts == 0
    call.cancel()
    wait_until(lambda: ask_status(stack, client).client_count == 0, "the client is gone")


def test_an_error_that_leaves_the_connection_usable_is_no_error_of_the_feed(stack: Stack) -> None:
    stack.upstream.subscribe_error = 405
    stack.start(url="")
    client, messages = stack.client(), stack.stubs.messages
    call = stack.call("StreamTrades", symbols=["AAPL"])
    stack.wait_held("trades", {"AAPL"})
    assert stack.hub is not None
    hub = stack.hub
    wait_until(lambda: hub.status().feeds[0].errors == {405: 1}, "the error is counted")
    assert ask_status(stack, client).feeds[0].state == messages.CONNECTION_STATE_CONNECTED
    call.cancel()


def test_health_follows_what_is_needed_and_being_alive_does_not(stack: Stack) -> None:
    stack.start(url="")
    health = health_pb2_grpc.HealthStub(stack.channel())

    def check(service: str) -> int:
        return int(health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S).status)

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert check("") == serving  # nothing is needed yet
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=DEADLINE_S)
    assert next(watch).status == serving
    stack.upstream.http_status = 503
    call = stack.call("StreamTrades", symbols=["AAPL"])
    wait_until(lambda: check("") == not_serving, "what is needed is not there")
    assert next(watch).status == not_serving
    assert check("live") == serving
    assert check("cream.v1.StreamProxyService") == not_serving
    stack.upstream.http_status = 0
    wait_until(lambda: check("") == serving, "it is well again by itself")
    assert next(watch).status == serving
    call.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        check("nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_tool_that_has_no_proto_files_finds_the_service_and_calls_it(stack: Stack) -> None:
    stack.start(url="")
    channel = stack.channel()
    database = ProtoReflectionDescriptorDatabase(channel)
    name = "cream.v1.StreamProxyService"
    assert {name, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == set(database.get_services())
    pool = DescriptorPool(database)
    service = pool.FindServiceByName(name)
    assert service.file.name == "cream/v1/stream_proxy.proto"
    assert [method.name for method in service.methods] == [
        "StreamQuotes",
        "StreamTrades",
        "StreamBars",
        "StreamOptionQuotes",
        "StreamOptionTrades",
        "StreamOrderUpdates",
        "GetConnectionStatus",
    ]
    answer = message_factory.GetMessageClass(service.methods_by_name["GetConnectionStatus"].output_type)
    call = channel.unary_unary(f"/{name}/GetConnectionStatus", response_deserializer=answer.FromString)
    assert len(call(b"", timeout=DEADLINE_S).status.feeds) == 3
    pool.FindMessageTypeByName("grpc.health.v1.HealthCheckRequest")
    newer = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
    (response,) = newer(iter([request]), timeout=DEADLINE_S)
    assert response.file_descriptor_response.file_descriptor_proto


# --- who is let in, and with what


def test_elsewhere_than_on_loopback_the_token_is_asked_for_but_not_for_health(stack: Stack) -> None:
    stack.start(access=Access("0.0.0.0", "right"))
    messages = stack.stubs.messages
    client, channel = stack.client(), stack.channel()
    for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "right"),)):
        with pytest.raises(grpc.RpcError) as caught:
            client.GetConnectionStatus(messages.GetConnectionStatusRequest(), metadata=metadata, timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        code, text = refusal(client.StreamBars(messages.StreamBarsRequest(), metadata=metadata, timeout=DEADLINE_S))
        assert (code, "wrong" in text, "right" in text) == (grpc.StatusCode.UNAUTHENTICATED, True, False)
        with pytest.raises(grpc.RpcError):
            ProtoReflectionDescriptorDatabase(channel).get_services()
    assert stack.sink.refused["UNAUTHENTICATED"] == 9
    call = stack.call("StreamBars", symbols=["AAPL"], metadata=(("authorization", "bearer right"),))
    stack.wait_held("bars", {"AAPL"})
    call.cancel()
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)


@pytest.mark.parametrize(
    ("method", "request_", "metadata", "says"),
    [
        ("StreamQuotes", {"symbols": ["no symbol"]}, (), "'NO SYMBOL' is not a symbol"),
        ("StreamQuotes", {"symbols": [OPTION]}, (), "is an option: see StreamOptionQuotes"),
        ("StreamBars", {"symbols": ["AAPL", "BTC/USD"]}, (), "BTC/USD is a crypto pair"),
        ("StreamOptionTrades", {"symbols": ["AAPL"]}, (), "AAPL is no option"),
        ("StreamOptionQuotes", {"underlyings": ["*"]}, (), "'*' is no underlying"),
        ("StreamOrderUpdates", {"symbols": ["-"]}, (), "is not a symbol"),
        ("StreamBars", {}, (("x-dry-work-offset", "3"),), "is no position: give both"),
        ("StreamBars", {}, (("x-dry-work-epoch", "e"), ("x-dry-work-offset", "x")), "is no position"),
        ("StreamBars", {}, (("x-dry-work-snapshot", "maybe"),), "expected true or false"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_sentence_and_nothing_is_held(
    stack: Stack, method: str, request_: dict[str, Any], metadata: tuple[tuple[str, str], ...], says: str
) -> None:
    stack.start()
    message = getattr(stack.stubs.messages, f"{method}Request")(**request_)
    code, text = refusal(getattr(stack.client(), method)(message, metadata=metadata, timeout=DEADLINE_S))
    assert (code, says in text) == (grpc.StatusCode.INVALID_ARGUMENT, True), text
    assert stack.hub is not None
    assert stack.hub.status().clients == 0


def test_a_request_that_is_no_message_and_orders_without_an_account_are_refused(stack: Stack) -> None:
    stack.start(url="")
    raw = stack.channel().unary_stream("/cream.v1.StreamProxyService/StreamQuotes")
    assert refusal(raw(b"\xff\xff", timeout=DEADLINE_S)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request is no cream.v1.StreamQuotesRequest",
    )
    messages = stack.stubs.messages
    code, text = refusal(stack.client().StreamOrderUpdates(messages.StreamOrderUpdatesRequest(), timeout=DEADLINE_S))
    assert (code, text) == (grpc.StatusCode.FAILED_PRECONDITION, "the hub has no credentials for the paper account")


def test_crypto_pairs_are_served_when_they_are_named(stack: Stack) -> None:
    stack.start(url="")
    call = stack.call("StreamTrades", symbols=["btc/usd"])
    path = "/v1beta3/crypto/us"
    stack.wait_held("trades", {"BTC/USD"}, path)
    stack.upstream.send([{"T": "t", "S": "BTC/USD", "p": 60_000.5, "s": 2.25, "i": 2**40, "tks": "B", "t": TIME}], path)
    trade = next(call).trade
    assert (trade.symbol, trade.price, trade.size, trade.trade_id) == ("BTC/USD", 60_000.5, 2, 2**40)


def test_with_a_certificate_the_port_speaks_tls(stack: Stack) -> None:
    certificate = make_certificate()
    stack.start(certificate=certificate, url="")
    credentials = grpc.ssl_channel_credentials(root_certificates=certificate.chain)
    with grpc.secure_channel(f"localhost:{stack.sink.port}", credentials) as channel:
        client = stack.stubs.services.StreamProxyServiceStub(channel)
        assert len(ask_status(stack, client).feeds) == 3
    with pytest.raises(grpc.RpcError):
        ask_status(stack, stack.client())


def test_tls_without_the_files_for_it_is_a_start_error(stack: Stack) -> None:
    access = Access("127.0.0.1", tls=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    with pytest.raises(ConfigError, match="needs the files of its TLS certificate"):
        stack.start(access=access)


def test_a_port_that_is_taken_is_a_start_error(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} \(STREAM_PROXY_GRPC_PORT\) cannot be opened"):
            stack.start(settings=GrpcSettings(port=port))
    stack.hub = None


# --- the end


def test_at_the_end_what_waits_is_delivered_and_calls_that_do_not_end_are_cut_in_time(stack: Stack) -> None:
    stack.start()
    reader = stack.call("StreamOrderUpdates")
    stuck = stack.call("StreamTrades", symbols=["AAPL"])
    reflection = ProtoReflectionDescriptorDatabase(stack.channel())
    reflection.get_services()
    health = health_pb2_grpc.HealthStub(stack.channel())
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    next(watch)
    stack.wait_held("trades", {"AAPL"})
    for _ in range(10):
        stack.upstream.send([make_trade("AAPL", number, x="x" * 4_000) for number in range(100)])
    wait_until(lambda: stack.sink.status().offered >= 1_000, "the trades are there")
    stack.publish_orders([make_order(f"o{number}") for number in range(20)])
    assert stack.hub is not None
    began_s = time.monotonic()
    stack.hub.stop(3.0)
    took_s = time.monotonic() - began_s
    ids = []
    with pytest.raises(grpc.RpcError) as caught:
        ids.extend(response.update.order.id for response in reader)
    assert ids == [f"o{number}" for number in range(20)]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the hub is stopping")
    with pytest.raises(grpc.RpcError):
        for _ in stuck:
            pass
    assert list(watch) == []  # it has ended, and there was nothing new to tell
    assert took_s < 30.0
    status = stack.sink.status()
    assert (status.clients, status.waiting, status.is_ready) == (0, 0, False)
    assert status.offered == status.delivered + status.conflated + status.dropped
