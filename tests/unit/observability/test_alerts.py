"""Alerts: what is sent, to real receivers, and that nothing of them disturbs or tells a secret."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dry_work.errors import ConfigError
from dry_work.observability.alerts import Alert, AlertGate, AlertSender, mask_url, split_urls, try_channels
from dry_work.observability.heartbeat import MISSED, Heartbeat, ping
from dry_work.observability.settings import WatchSettings, read_watch_settings

# Some versions of apprise import a module of the standard library that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

DEADLINE_S = 60.0
SECRET = "hush-hush"


class Receiver:
    """A webhook."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.gets: list[str] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer()

            def do_GET(self) -> None:
                receiver.gets.append(self.path)
                self._answer()

            def _answer(self) -> None:
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(DEADLINE_S)
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_equal_alert_is_held_back_until_its_time_and_counted_in_the_next() -> None:
    gate = AlertGate(repeat_s=60)
    assert gate.admit(Alert(event="halt", text="one", subject="SPY"), 0) == "one"
    assert gate.admit(Alert(event="halt", text="two", subject="SPY"), 59) is None
    assert gate.admit(Alert(event="halt", text="other", subject="QQQ"), 59) == "other\n(1 more alerts were held back)"
    assert gate.admit(Alert(event="halt", text="three", subject="SPY"), 60) == "three"


def test_only_so_many_alerts_leave_in_a_window_but_the_last_of_a_run_always_does() -> None:
    gate = AlertGate(window_s=100, most=2)
    found = [gate.admit(Alert(event="risk", text="x", subject=str(number)), 1) for number in range(4)]
    assert found == ["x", "x", None, None]
    assert gate.admit(Alert(event="run_ended", text="end", is_last=True), 2) == "end\n(2 more alerts were held back)"
    assert gate.admit(Alert(event="risk", text="later", subject="z"), 102) == "later"


def test_a_list_of_urls_is_split_at_commas_that_a_url_follows() -> None:
    assert split_urls("json://a/b,c, slack://x/y/z") == ("json://a/b,c", "slack://x/y/z")
    assert split_urls(" ") == ()
    assert mask_url(f"tgram://{SECRET}/1") == "tgram://***"
    assert mask_url(SECRET) == "***"


def test_alerts_reach_a_webhook_in_order_and_close_sends_what_waits(receiver: Receiver) -> None:
    sender = AlertSender([f"json://{receiver.address}/{SECRET}"], title="mine")
    sender.send(Alert(event="stale_data", text="no slice"))
    sender.send(Alert(event="stale_data", text="no slice"))
    sender.send(Alert(event="run_ended", text="the end", is_last=True))
    sender.close()
    sender.close()
    assert [(post["title"], post["message"]) for post in receiver.posts] == [
        ("mine: stale data", "no slice"),
        ("mine: run ended", "the end\n(1 more alerts were held back)"),
    ]
    assert (sender.sent, sender.failed, sender.held_back) == (2, 0, 1)


def test_a_channel_that_refuses_hinders_no_other_and_no_secret_is_logged(
    receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    good = Receiver()
    receiver.status = 500
    try:
        sender = AlertSender([f"json://u:{SECRET}@{at.address}/{SECRET}" for at in (receiver, good)], title="mine")
        sender.send(Alert(event="halt", text="stop"))
        sender.close()
        assert [post["message"] for post in good.posts] == ["stop"]
        assert len(receiver.posts) == 1
        assert (sender.sent, sender.failed) == (1, 1)
    finally:
        good.close()
    told = capfd.readouterr()
    assert "an alert was not taken" in told.out + told.err
    assert SECRET not in told.out + told.err


def test_a_url_that_is_none_is_refused_without_being_told() -> None:
    with pytest.raises(ConfigError, match=r"bogus://\*\*\* \(number 1\)") as caught:
        AlertSender([f"bogus://{SECRET}"], title="mine")
    assert SECRET not in str(caught.value)


def test_each_channel_can_be_tested(receiver: Receiver) -> None:
    assert try_channels([f"json://{receiver.address}"], "hello") == [("json://***", True)]
    receiver.status = 403
    assert try_channels([f"json://{receiver.address}"], "hello") == [("json://***", False)]


def test_a_heartbeat_beats_while_data_flow_and_tells_once_that_it_is_not_taken(receiver: Receiver) -> None:
    flows, missed = threading.Event(), list[str]()
    heartbeat = Heartbeat(
        f"http://{receiver.address}/{SECRET}", every_s=0.01, flows=flows.is_set, on_missed=missed.append
    )
    try:
        assert heartbeat.sent == 0
        flows.set()
        wait_for(lambda: heartbeat.sent >= 3)
        receiver.status = 503
        wait_for(lambda: heartbeat.failed >= MISSED + 3)
    finally:
        heartbeat.close()
        heartbeat.close()
    assert missed == [f"{MISSED} heartbeats in a row were not taken: the server answered 503"]
    assert set(receiver.gets) == {f"/{SECRET}"}
    assert ping("http://127.0.0.1:1/x", 5.0) == "ConnectionRefusedError"


def test_settings_come_from_variables_and_else_from_the_table_and_show_no_secret() -> None:
    table = {"urls": [f"slack://{SECRET}"], "stale_seconds": 90}
    assert read_watch_settings({}) == WatchSettings()
    assert not WatchSettings().is_on
    found = read_watch_settings({"METRICS_PORT": "0", "DISABLE_METRICS": "false"}, table)
    assert (found.alert_urls, found.stale_s, found.has_metrics, found.metrics_port) == (
        (f"slack://{SECRET}",),
        90,
        True,
        0,
    )
    assert SECRET not in repr(found)
    assert read_watch_settings({"DRY_WORK_ALERTS": "json://x"}, table).alert_urls == ("json://x",)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DRY_WORK_ALERTS", SECRET),
        ("DRY_WORK_HEARTBEAT_URL", f"ftp://{SECRET}"),
        ("METRICS_PORT", "65536"),
        ("DISABLE_METRICS", "maybe"),
        ("DRY_WORK_ALERT_STALE_SECONDS", "0"),
        ("DRY_WORK_HEARTBEAT_SECONDS", "nan"),
    ],
)
def test_a_setting_that_is_not_usable_is_named_and_no_url_is_told(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        read_watch_settings({variable: value})
    assert SECRET not in str(caught.value)
