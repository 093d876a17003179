"""One account's order updates, from whatever brings them to the bus: each once, in order, without a gap.

Event-loop only. After a connection was lost, updates that arrive wait until the gap before them is filled: from the
venue's history of events where it has one behind our last event, otherwise from its orders and executions, compared
with what was told.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson
import structlog

from dry_work.alpaca.broker_events import find_cursor
from dry_work.backoff import Backoff
from dry_work.clock import SECOND_NS, Clock
from dry_work.errors import BrokerError, CodecError, OrderRejectedError
from dry_work.hub.accounts import HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.events import ORDERS
from dry_work.hub.order_events import OrderEvent, OrderLedger, OrderMemory
from dry_work.hub.upstreams.event_history import read_history
from dry_work.storage import write_atomically
from dry_work.wire.alpaca_stream import make_plain
from dry_work.wire.pubsub import encode_time, parse_time

STREAM = "trade_updates"
KEPT_EVERY_S = 1.0
PORTION, PORTION_PAUSE_S = 32, 0.01  # of what was missed; a reader has room for 256
OVERLAP_NS = 60 * SECOND_NS  # a comparison looks so much further back: clocks differ
PAGE = 500
ACTIVITY_PAGE = 100
MOST_LOOK_UPS = 20  # orders that one check asks for by their ids

_Item = TypeVar("_Item")

_log = structlog.get_logger(__name__)


class OrderRelay:
    """The order updates of one account.

    Args:
        account: whose updates; also asked for orders and executions.
        bus: takes the updates.
        memory: file that keeps over a restart what was told; None: nothing is kept.
        has_history: the venue may have a history of events beside the stream.
        count_event: called with the name of every event that is told.
        count_malformed: called with the reason for every update that cannot be read.
    """

    def __init__(
        self,
        account: HubAccount,
        bus: Bus,
        *,
        clock: Clock,
        rng: random.Random,
        memory: Path | None,
        has_history: bool,
        count_event: Callable[[str], None],
        count_malformed: Callable[[str], None],
    ) -> None:
        self._account = account
        self._bus = bus
        self._clock = clock
        self._rng = rng
        self._memory = memory
        self._count_event = count_event
        self._count_malformed = count_malformed
        self.ledger = OrderLedger(_read_memory(memory))
        self._kept = b""
        self._waiting: list[tuple[Mapping[str, Any], bytes]] | None = None  # until the gap before them is filled
        self._ahead: tuple[Mapping[str, Any], ...] = ()  # orders that a stream has kept updates of back
        self._has_history = has_history  # until the venue has refused it
        self.gaps = 0  # connections after which events were missing
        self.found = 0  # events that filled them

    @property
    def place(self) -> dict[str, str]:
        """Where the venue's events are to go on: its query, empty when there is no such place.

        Behind an event that was told; before there was one, at the time from which on the account is known.
        """
        ledger = self.ledger
        cursor = find_cursor(ledger.venue_ids)
        if cursor is not None:
            return {"since_id": cursor}
        if ledger.is_new or ledger.has_told:
            return {}
        return {"since": encode_time(ledger.last_ns)}

    def hold(self) -> None:
        """Let updates wait from now on, until `catch_up` is done."""
        if self._waiting is None:
            self._waiting = []

    def take(self, data: Mapping[str, Any], raw: bytes = b"") -> None:
        """Take an update of the venue's; `raw` is the message that brought it, in the form of trade_updates."""
        data = _ensure_plain(data)
        if self._waiting is not None:
            self._waiting.append((data, raw))
        else:
            self._take(data, raw)

    async def watch(self, *, interval_s: float, grace_s: float) -> int:
        """Return once the stream has kept updates back: of how many orders. The next stream is to bring them.

        Now and then the venue's orders are compared with what was told.

        Args:
            interval_s: from one look to the next; 0: never.
            grace_s: an update may come so much later than the order shows it.
        """
        while not interval_s:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(interval_s)
            try:
                ahead = await self._list_ahead()
                if ahead:
                    await asyncio.sleep(grace_s)
                was_ahead, self._ahead = self._ahead, tuple(filter(self.ledger.is_behind, ahead))
                if self._ahead and was_ahead:  # a new stream has not brought it
                    await self._compare()
                elif self._ahead:
                    return len(self._ahead)
            except BrokerError as error:
                _log.info("orders could not be compared", feed=self._account.feed, error=str(error))

    async def catch_up(self, *, is_resumed: bool = False) -> None:
        """Tell what a lost connection swallowed, however often it takes, and then what waits.

        Args:
            is_resumed: the stream goes on at `place`: it brings everything itself.
        """
        backoff = Backoff(self._rng)
        while True:
            try:
                await self._fill_gap(is_resumed=is_resumed)
                break
            except BrokerError as error:
                wait_s = backoff.next_wait_s(self._clock.monotonic())
                _log.warning(
                    "order updates wait: what came before cannot be fetched",
                    feed=self._account.feed,
                    error=str(error),
                    retry_in_s=round(wait_s, 2),
                )
                await asyncio.sleep(wait_s)
        while self._waiting:  # more may come while its readers take what there is
            waiting, self._waiting = self._waiting, []
            await _tell_in_portions(waiting, lambda item: self._take(*item))
        self._waiting = None

    def _take(self, data: Mapping[str, Any], raw: bytes = b"") -> None:
        try:
            event = self.ledger.take(data)
        except CodecError as error:
            self._count_malformed(error.reason)
            return
        if event is not None:
            self._publish(event, raw)

    def _publish(self, event: OrderEvent, raw: bytes = b"") -> None:
        self._count_event(str(event.data["event"]))
        self._bus.publish(
            self._account.feed,
            ORDERS,
            event.symbol,
            event.data,
            ts_recv_ns=self._clock.time_ns(),
            event_id=event.event_id,
            raw=raw or orjson.dumps({"stream": STREAM, "data": event.data}, default=str),
        )

    # --- what a lost connection swallowed

    async def _fill_gap(self, *, is_resumed: bool) -> None:
        if not self._account.account_id:
            await self._account.identify()
        ledger = self.ledger
        if ledger.is_new:
            # The venue's clock, not ours: it is compared with times of the venue's orders.
            clock = await self._account.call("GET", "/clock")
            now_ns = _parse_clock(clock) or self._clock.time_ns()
            ledger.seed(await self._list_orders({"status": "open"}))
            # Those that have just ended too, or a comparison would find them.
            ledger.seed(await self._list_orders({"status": "closed", "after": _write_time(now_ns - 2 * OVERLAP_NS)}))
            ledger.last_ns = now_ns
            self.write_memory()  # what comes from here on is missed by nobody
            return
        if is_resumed or (await self._read_history() and not any(map(ledger.is_behind, self._ahead))):
            return
        await self._compare()

    async def _compare(self) -> None:
        """Tell what the venue's orders and executions show, and nobody has told."""
        since = _write_time(self.ledger.last_ns - OVERLAP_NS)
        orders = await self._list_recent_orders(since)
        executions = await self._list_executions(since)
        found = self.ledger.compare(orders, executions)
        self._ahead = ()
        self._note_found(len(found))
        await _tell_in_portions(found, self._publish)

    async def _list_ahead(self) -> list[dict[str, Any]]:
        """Return the orders that are further than what was told of them: most times none, or the stream is about to."""
        since = _write_time(self.ledger.last_ns - OVERLAP_NS)
        orders = await self._list_recent_orders(since, most_look_ups=MOST_LOOK_UPS)
        return [order for order in orders if self.ledger.is_behind(order)]

    async def _list_recent_orders(self, since: str, *, most_look_ups: int | None = None) -> list[dict[str, Any]]:
        """Return the orders that something may have happened to: open ones, those made since, those told to be open."""
        orders = {str(order.get("id")): order for order in await self._list_orders({"status": "open"})}
        for order in await self._list_orders({"status": "closed", "after": since}):
            orders.setdefault(str(order.get("id")), order)
        for order_id in sorted(self.ledger.open_ids - orders.keys())[:most_look_ups]:
            # It was made before the time in question, and has ended since.
            try:
                answer = await self._account.call("GET", f"/orders/{order_id}")
            except OrderRejectedError as error:
                _log.warning("the venue does not know an order any more", feed=self._account.feed, error=str(error))
                self.ledger.forget(order_id)  # as after an account was reset
                continue
            if isinstance(answer, dict):
                orders[order_id] = answer
        return list(orders.values())

    async def _read_history(self) -> bool:
        """Tell what the venue's history has; return whether that is all there was."""
        place = self.place
        if not self._has_history or not place:
            return False
        ids = self.ledger.venue_ids
        last_known = ids[-1] if ids else ""
        history = await read_history(self._account.access, place, last_known=last_known, is_live=self._is_live)
        self._has_history = history is not None
        if history is None:
            return False
        before = self.ledger.told
        await _tell_in_portions(history.events, lambda item: self._take(_ensure_plain(item[0]), item[1]))
        self._note_found(self.ledger.told - before)
        return history.is_complete and bool(ids)  # by time alone, it cannot be told from one that begins too late

    def _is_live(self, event_id: str) -> bool:
        return any(str(data.get("event_id")) == event_id for data, _ in self._waiting or ())

    def _note_found(self, events: int) -> None:
        if events:
            self.gaps += 1
            self.found += events
            _log.warning("order updates were missed and found", feed=self._account.feed, events=events)

    async def _list_orders(self, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all orders that match, page by page, newest first."""
        found: dict[str, dict[str, Any]] = {}
        until: str | None = None
        while True:
            page = await self._account.call(
                "GET", "/orders", {**query, "limit": PAGE, **({"until": until} if until else {})}
            )
            rows = [row for row in page if isinstance(row, dict)] if isinstance(page, list) else []
            fresh = [row for row in rows if str(row.get("id")) not in found]
            found.update((str(row.get("id")), row) for row in fresh)
            if len(rows) < PAGE or not fresh:
                return list(found.values())
            try:
                last_ns = parse_time(str(rows[-1].get("submitted_at")))
            except ValueError:
                _log.warning("older orders cannot be asked for: one has no submitted_at", feed=self._account.feed)
                return list(found.values())
            # `until` excludes the moment itself, which may be that of further orders.
            until = encode_time(last_ns + 1_000)

    async def _list_executions(self, since: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"after": since, "direction": "asc", "page_size": ACTIVITY_PAGE}
            page = await self._account.call(
                "GET", "/account/activities/FILL", {**query, **({"page_token": token} if token else {})}
            )
            rows = [row for row in page if isinstance(row, dict)] if isinstance(page, list) else []
            found += rows
            if len(rows) < ACTIVITY_PAGE:
                return found
            token = str(rows[-1].get("id"))

    # --- over a restart

    async def keep_memory(self) -> None:
        """Write down what was told, again and again, until cancelled."""
        while self._memory is not None:
            await asyncio.sleep(KEPT_EVERY_S)
            self.write_memory()

    def write_memory(self) -> None:
        """Write down what was told."""
        if self._memory is None or self.ledger.is_new:
            return
        content = msgspec.json.encode(self.ledger.memory)
        if content == self._kept:
            return
        try:
            write_atomically(self._memory, content)
        except OSError as error:
            _log.error("what was told of orders cannot be kept", path=str(self._memory), error=str(error))
        else:
            self._kept = content


async def _tell_in_portions(items: Iterable[_Item], tell: Callable[[_Item], None]) -> None:
    """Tell items with pauses, so that readers who keep up are not overrun by all that was missed at once."""
    left = deque(items)
    try:
        while left:
            for _ in range(min(PORTION, len(left))):
                tell(left.popleft())
            if left:
                await asyncio.sleep(PORTION_PAUSE_S)
    finally:
        while left:  # the session is over: they count as told already
            tell(left.popleft())


def _ensure_plain(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an update as it came, unless the interfaces could not write it: nested too deeply, or a huge number."""
    try:
        orjson.dumps(data, default=str)
    except TypeError:
        plain: dict[str, Any] = make_plain(data)
        return plain
    return data


def _write_time(time_ns: int) -> str:
    """Return a time as queries have it, in whole seconds."""
    return dt.datetime.fromtimestamp(max(0, time_ns) // SECOND_NS, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_clock(answer: object) -> int:
    text = answer.get("timestamp") if isinstance(answer, Mapping) else None
    try:
        return parse_time(text) if isinstance(text, str) else 0
    except ValueError:
        return 0


def _read_memory(path: Path | None) -> OrderMemory | None:
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=OrderMemory)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("what was told of orders cannot be read, it begins anew", path=str(path), error=str(error))
        return None
