"""The gRPC way to a hub whose connection lives, but that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from dry_work.errors import ConfigError, FeedDisconnectedError
from dry_work.feeds.grpc import GrpcTransport

DEADLINE_S = 60.0


class Silence(grpc.GenericRpcHandler):
    """Takes calls, and says nothing; with metadata it begins them as any other service would."""

    def __init__(self) -> None:
        self.metadata: tuple[tuple[str, str], ...] | None = None
        self.over = threading.Event()

    def service(self, details: Any) -> grpc.RpcMethodHandler[Any, Any]:
        def answer(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            if self.metadata is not None:
                context.send_initial_metadata(self.metadata)
            self.over.wait(DEADLINE_S)
            yield from ()

        return grpc.unary_stream_rpc_method_handler(answer)


@pytest.fixture
def silence() -> Iterator[tuple[Silence, str]]:
    handler = Silence()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield handler, f"http://127.0.0.1:{port}"
        handler.over.set()
        server.stop(None).wait(DEADLINE_S)


def begin_in_thread(url: str, timeout_s: float) -> tuple[list[BaseException], threading.Thread]:
    session = GrpcTransport(url, symbols=["SPY"]).build_session(("stocks",), {})
    errors: list[BaseException] = []

    def run() -> None:
        try:
            session.begin(timeout_s)
        except BaseException as error:
            errors.append(error)
        finally:
            session.close(for_good=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return errors, thread


def test_a_call_that_is_not_answered_in_time_is_a_lost_connection(silence: tuple[Silence, str]) -> None:
    errors, thread = begin_in_thread(silence[1], 0.2)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, FeedDisconnectedError)
    assert str(error) == "no answer within 0.2 s"


def test_another_service_that_begins_and_says_nothing_is_no_hub(silence: tuple[Silence, str]) -> None:
    handler, url = silence
    handler.metadata = (("server", "another"),)
    errors, thread = begin_in_thread(url, 1.0)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, ConfigError)
    assert "no hub answers" in str(error)
