"""I/O boundaries of a trader: the moments before and after everything that it does to the world, or the world to it.

Each has a name such as `POST /v2/orders sent #2`. A process counts them, lists them in a file, and kills itself at the
one that it was told. Between two boundaries a trader only calculates, so that a kill there is a kill at one of them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|dw-[\w-]+")
_TABLE = re.compile(r"(?:INSERT (?:OR \w+ )?INTO|UPDATE|DELETE FROM|REPLACE INTO) +(\w+)", re.IGNORECASE)
_SILENT_FILES = ("heartbeat",)  # every few seconds, by the clock


class Boundaries:
    """Counts the boundaries of this process; `install` wraps the places where they are.

    Args:
        path: where their names are listed as they are crossed.
        kill_at: name of the one to die at; empty for none.
    """

    def __init__(self, path: Path, *, kill_at: str) -> None:
        self._list = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._kill_at = kill_at
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def cross(self, what: str) -> None:
        """Pass a boundary, or die at it."""
        with self._lock:
            self._counts[what] += 1
            name = f"{what} #{self._counts[what]}"
            os.write(self._list, f"{name}\n".encode())
            if name == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60.0)  # the signal takes a moment; nobody passes

    def install(self) -> None:
        """Wrap journal, requests, trade events, files and notifications."""
        self._wrap_database()
        self._wrap_requests()
        self._wrap_trade_events()
        self._wrap_files()
        self._wrap_notifications()

    def _wrap_database(self) -> None:
        cross, connect = self.cross, sqlite3.connect

        class Connection(sqlite3.Connection):
            written: dict[str, None]

            def execute(self, sql: str, *args: Any) -> Any:
                word = sql.split(None, 1)[0].upper()
                if word == "BEGIN":
                    self.written = {}
                elif word == "COMMIT":
                    return self._cross_commit(lambda: super(Connection, self).execute(sql, *args))
                else:
                    self._note(sql)
                return super().execute(sql, *args)

            def executemany(self, sql: str, rows: Any) -> Any:
                rows = list(rows)
                if rows:
                    self._note(sql)
                return super().executemany(sql, rows)

            def __exit__(self, *args: Any) -> Any:
                return self._cross_commit(lambda: super(Connection, self).__exit__(*args))

            def _note(self, sql: str) -> None:
                found = _TABLE.match(sql.lstrip())
                if found is not None:
                    self.__dict__.setdefault("written", {})[found[1]] = None

            def _cross_commit(self, commit: Any) -> Any:
                written = "+".join(self.__dict__.pop("written", {}))
                if not written:
                    return commit()
                cross(f"journal {written} before")
                result = commit()
                cross(f"journal {written} after")
                return result

        def connect_counting(*args: Any, **options: Any) -> Any:
            options.setdefault("factory", Connection)
            return connect(*args, **options)

        sqlite3.connect = connect_counting  # type: ignore[assignment]

    def _wrap_requests(self) -> None:
        from urllib3.connection import HTTPConnection

        cross, request, getresponse = self.cross, HTTPConnection.request, HTTPConnection.getresponse
        under_way = threading.local()

        def send(connection: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
            path = re.sub(r"/\d+(?=/|$)", "/{n}", _ID.sub("{id}", url.partition("?")[0]))
            under_way.name = f"{method} {path}"
            cross(f"{under_way.name} before")
            result = request(connection, method, url, *args, **options)
            cross(f"{under_way.name} sent")
            return result

        def receive(connection: Any) -> Any:
            answer = getresponse(connection)
            cross(f"{under_way.name} answered")
            return answer

        HTTPConnection.request = send  # type: ignore[method-assign]
        HTTPConnection.getresponse = receive  # type: ignore[method-assign]

    def _wrap_trade_events(self) -> None:
        from dry_work.alpaca.streams import TradeUpdates

        cross, take = self.cross, TradeUpdates._take

        def take_counted(stream: Any, frame: str | bytes) -> Any:
            what = _name_frame(frame)
            cross(f"{what} before")
            result = take(stream, frame)
            cross(f"{what} after")
            return result

        TradeUpdates._take = take_counted  # type: ignore[method-assign]

    def _wrap_files(self) -> None:
        cross, replace = self.cross, os.replace

        def replace_counted(source: Any, target: Any, **options: Any) -> None:
            name = re.sub(r"^agent-.*\.", "agent.", Path(target).name)
            if name in _SILENT_FILES:
                replace(source, target, **options)
                return
            cross(f"file {name} before")
            replace(source, target, **options)
            cross(f"file {name} after")

        os.replace = replace_counted

    def _wrap_notifications(self) -> None:
        import backtrader as bt

        cross, notify = self.cross, bt.Strategy._notify

        def notify_counted(strategy: Any, qorders: Any = (), qtrades: Any = ()) -> None:
            orders = qorders if strategy.cerebro.p.quicknotify else strategy._orderspending
            told = "+".join(order.getstatusname() for order in orders)
            if not told:
                notify(strategy, qorders, qtrades)
                return
            cross(f"notify_order {told} before")
            notify(strategy, qorders, qtrades)
            cross(f"notify_order {told} after")

        bt.Strategy._notify = notify_counted


def _name_frame(frame: str | bytes) -> str:
    try:
        message = json.loads(frame)
        stream = str(message.get("stream"))
        return f"event {message['data']['event']}" if stream == "trade_updates" else f"frame {stream}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "frame"
