"""Alerts of a run: which are sent, and the thread that sends them with apprise. Nothing of it disturbs the run.

An equal alert is sent once in a while, and only so many in all; what is held back is counted in the next one.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from dry_work.errors import ConfigError

INSTALL = "pip install 'dry-work[alerts]'"
REPEAT_S = 900.0  # an equal alert is told again after so long
WINDOW_S, WINDOW_ALERTS = 600.0, 20
WAITING_ALERTS = 100  # more are left out, oldest first
_KEYS = 1000
# A comma belongs to a URL unless another URL follows.
_BETWEEN = re.compile(r"\s*,\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)|\s+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.")

_log = structlog.get_logger(__name__)


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody should know. Alerts of one event and subject are equal, whatever their text."""

    event: str  # halt, risk, stale_data, stream_lost, order_rejected, run_failed, run_ended, reconciliation, heartbeat
    text: str
    subject: str = ""  # such as a symbol
    is_last: bool = False  # of the run: never held back


class AlertGate:
    """Says which alerts are sent. Pure.

    Args:
        repeat_s: an equal alert is sent again after so long.
        window_s, most: at most so many in such a time.
    """

    def __init__(self, *, repeat_s: float = REPEAT_S, window_s: float = WINDOW_S, most: int = WINDOW_ALERTS) -> None:
        self._repeat_s = repeat_s
        self._window_s = window_s
        self._most = most
        self._last_s: dict[tuple[str, str], float] = {}
        self._sent_s: deque[float] = deque()
        self.held_back = 0  # since the last one that was sent

    def admit(self, alert: Alert, now_s: float) -> str | None:
        """Return the text to send, None to send none.

        Args:
            now_s: of a clock that never goes back.
        """
        while self._sent_s and now_s - self._sent_s[0] >= self._window_s:
            self._sent_s.popleft()
        key = (alert.event, alert.subject)
        last_s = self._last_s.get(key)
        is_repeated = last_s is not None and now_s - last_s < self._repeat_s
        if not alert.is_last and (is_repeated or len(self._sent_s) >= self._most):
            self.held_back += 1
            return None
        self._last_s.pop(key, None)
        self._last_s[key] = now_s
        if len(self._last_s) > _KEYS:
            del self._last_s[next(iter(self._last_s))]
        self._sent_s.append(now_s)
        held, self.held_back = self.held_back, 0
        return alert.text + (f"\n({held} more alerts were held back)" if held else "")


def split_urls(text: str) -> tuple[str, ...]:
    """Return the URLs of a list that commas or blanks separate."""
    return tuple(filter(None, _BETWEEN.split(text.strip().strip(","))))


def mask_url(url: str) -> str:
    """Return a URL without what may be secret in it, which is everything but its scheme."""
    found = _SCHEME.match(url)
    return f"{found[1]}://***" if found else "***"


def open_channels(urls: Sequence[str]) -> list[tuple[str, Any]]:
    """Return channels with their masked URLs.

    Raises:
        ConfigError: apprise is not installed, or it cannot use one of the URLs.
    """
    try:
        apprise: Any = importlib.import_module("apprise")
    except ImportError as error:
        raise ConfigError(f"DRY_WORK_ALERTS needs a package that is not installed: {INSTALL}") from error
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines repeat parts of URLs
    channels: list[tuple[str, Any]] = []
    for url in urls:
        channel = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if channel is None:
            raise ConfigError(
                f"DRY_WORK_ALERTS: {mask_url(url)} (number {len(channels) + 1}) is not a URL that apprise can use; "
                "expected such as jsons://host/path, slack://…, tgram://…, mailtos://…"
            )
        channels.append((mask_url(url), channel))
    return channels


def try_channels(urls: Sequence[str], text: str) -> list[tuple[str, bool]]:
    """Send a text to each URL; return the masked URLs, and whether each took it.

    Raises:
        ConfigError: as `open_channels`.
    """
    return [(name, _deliver(channel, "dry-work", text)) for name, channel in open_channels(urls)]


class AlertSender:
    """Sends alerts on a thread of its own.

    Args:
        urls: as apprise takes them.
        title: of all alerts, such as the agent's name.

    Raises:
        ConfigError: as `open_channels`.
    """

    def __init__(self, urls: Sequence[str], *, title: str, gate: AlertGate | None = None) -> None:
        self._channels = open_channels(urls)
        self._title = title
        self._gate = gate or AlertGate()
        self._waiting: deque[Alert | None] = deque(maxlen=WAITING_ALERTS)
        self._signal = threading.Event()
        self._failing: set[int] = set()
        self.sent = 0  # alerts that any channel took
        self.failed = 0  # that a channel did not take
        self.held_back = 0
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Let an alert be sent; from any thread, at once."""
        self._waiting.append(alert)
        self._signal.set()

    def close(self, timeout_s: float = 15.0) -> None:
        """Send what waits and end. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._waiting.append(None)
        self._signal.set()
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("alerts were given up: they are not taken in time")

    def _run(self) -> None:
        while True:
            self._signal.wait()
            self._signal.clear()
            while self._waiting:
                alert = self._waiting.popleft()
                if alert is None:
                    return
                text = self._gate.admit(alert, time.monotonic())
                if text is None:
                    self.held_back += 1
                else:
                    self._send(f"{self._title}: {alert.event.replace('_', ' ')}", text)

    def _send(self, title: str, text: str) -> None:
        taken = False
        for number, (name, channel) in enumerate(self._channels):
            if _deliver(channel, title, text):
                taken = True
                self._failing.discard(number)
                continue
            self.failed += 1
            if number not in self._failing:  # told once
                self._failing.add(number)
                _log.warning("an alert was not taken", channel=name, number=number + 1)
        self.sent += taken


def _deliver(channel: Any, title: str, text: str) -> bool:
    try:
        return bool(channel.notify(body=text, title=title))
    except Exception:  # apprise raises what its parts raise; the reason may hold a URL, and is left out
        return False
