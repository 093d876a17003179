"""A dead man's switch: a URL that is asked for every so often while market data flow. Silence is the alarm."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import structlog

TIMEOUT_S = 10.0
MISSED = 3  # failures in a row that are told

_log = structlog.get_logger(__name__)


class Heartbeat:
    """Asks for a URL on a thread of its own.

    Args:
        url: http or https, parsed before.
        every_s: between two of them.
        flows: tells whether to ask; called on the thread.
        on_missed: called when `MISSED` in a row have failed, once until one succeeds.
    """

    def __init__(
        self,
        url: str,
        *,
        every_s: float,
        flows: Callable[[], bool],
        on_missed: Callable[[str], None],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._url = url
        self._every_s = every_s
        self._flows = flows
        self._on_missed = on_missed
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self.sent = 0
        self.failed = 0
        self._in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End. May be called twice."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self._timeout_s + 1.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._flows():
                self._beat()
                self._stopping.wait(self._every_s)
            else:
                self._stopping.wait(min(1.0, self._every_s))

    def _beat(self) -> None:
        why = ping(self._url, self._timeout_s)
        if not why:
            self.sent += 1
            self._in_a_row = 0
            return
        self.failed += 1
        self._in_a_row += 1
        if self._in_a_row == MISSED:
            _log.warning("the heartbeat is not taken", reason=why)
            self._on_missed(f"{MISSED} heartbeats in a row were not taken: {why}")


def ping(url: str, timeout_s: float = TIMEOUT_S) -> str:
    """Ask for a URL; return why it failed without the URL in it, empty when it did not."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "dry-work"})  # noqa: S310  # parsed before
        with contextlib.closing(urllib.request.urlopen(request, timeout=timeout_s)) as answer:  # noqa: S310
            answer.read(1024)
    except urllib.error.HTTPError as error:
        error.close()
        return f"the server answered {error.code}"
    except urllib.error.URLError as error:
        return type(error.reason).__name__ if isinstance(error.reason, Exception) else "no connection"
    except (OSError, ValueError) as error:
        return type(error).__name__
    return ""
