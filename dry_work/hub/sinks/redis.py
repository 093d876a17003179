"""The Redis interface: registrations in; prices, order updates, streams and log lines out. Event-loop only.

Nothing of it needs Redis to be there: it is tried on, and what goes out waits. Holds are kept in Redis too, so that
they outlast the hub.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from dry_work.errors import CodecError, ConfigError
from dry_work.hub.events import Topic
from dry_work.hub.interest import Interest
from dry_work.hub.message_types import ORDER_UPDATE, name_counts
from dry_work.hub.ports import HubPort, OrderAccount, SinkStatus
from dry_work.hub.sinks.redis_data import DataPublisher
from dry_work.hub.sinks.redis_holds import Holds
from dry_work.hub.sinks.redis_link import RedisConnection, RedisError, RedisLink
from dry_work.hub.sinks.redis_logs import LogChannel
from dry_work.hub.sinks.redis_orders import OrderPublisher
from dry_work.hub.sinks.redis_settings import RedisSettings
from dry_work.wire.redis import (
    LEGACY_REGISTRATION,
    REGISTRATION,
    TRADES,
    Registration,
    bar_channel,
    legacy_channel,
    order_channel,
    parse_registration,
    price_channel,
)
from dry_work.wire.redis_protocol import ReplyError, encode_command

HOLDS_KEY = b"dry-work:holds"  # a hash: symbol, or `account:` and a name -> holds, or environment
ACCOUNT_FIELD = "account:"
START_WAIT_S = 3.0  # for Redis, before the hub goes on without
PING_S = 5.0  # of silence, before Redis is asked for a sign
ACCOUNT_WAIT_S = 30.0  # for Alpaca to tell whose an account is
MOST_DEFERRED = 1_000
MOST_NAMES = 64  # further spellings of the accounts
CHUNK = 1_000  # fields or channels in a command
FLUSH_CHECK_S = 0.005

_log = structlog.get_logger(__name__)


class RedisSink:
    """The hub at a Redis server.

    Args:
        hub: gives events and accounts.
        settings: where Redis is, and what is published there.
        state_dir: folder that keeps order updates until they are published; None: they end with the process.
    """

    name = "redis"

    def __init__(self, hub: HubPort, settings: RedisSettings, *, state_dir: Path | None = None) -> None:
        self.hub = hub
        self.settings = settings
        self.holds = Holds(settings.lease_s)
        self.logs = LogChannel(hub.clock, has_stream=settings.stream_length > 0)
        self.data = DataPublisher(hub, settings, note_receivers=self.holds.note_receivers)
        self.orders: dict[str, OrderPublisher] = {}  # by environment
        self.link = RedisLink(
            settings,
            prepare=self._prepare,
            build=self._build_session,
            clock=hub.clock,
            rng=hub.rng,
            on_attempt=self._note_attempt,
        )
        self._state_dir = state_dir
        self._accounts: list[OrderAccount] = []
        self._names: dict[str, tuple[str, float]] = {}  # further spelling -> environment, when it was listened to last
        self._deferred: deque[tuple[Registration, str, float]] = deque()  # until Alpaca has told the accounts
        self._followed: Interest[Topic] = Interest()  # what the hub was asked for, by symbol
        self._changed: dict[str, None] = {}  # fields of the kept holds that are to be written
        self._has_changed = asyncio.Event()
        self._renew_at_s = 0.0
        self._is_restored = False
        self._subscribed: set[bytes] = set()
        self._serving: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()
        self._has_started = False
        self._is_stopping = False
        self.registrations = 0
        self.refusals = 0

    async def start(self) -> None:
        for environment in ("paper", "live"):
            account = self.hub.account(environment)
            if account is not None:
                self._accounts.append(account)
                orders = self.orders[environment] = OrderPublisher(
                    self.hub,
                    account,
                    self.settings,
                    self.logs,
                    names=lambda environment=environment: self._names_of(environment),  # type: ignore[misc]
                    state_dir=self._state_dir,
                )
                orders.attach()
        self._serving = asyncio.create_task(self.link.serve(), name="hub-redis")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._attempted.wait(), START_WAIT_S)
        if not self.link.is_working:
            _log.warning("Redis is not there; trying on", address=self.settings.address, reason=self.link.error)

    async def stop(self, timeout_s: float) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        self.data.detach()
        for orders in self.orders.values():
            orders.take()
        if self._serving is not None:
            if self._has_started:
                self.logs.say("info", "stop", "the hub stops")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._flush(), timeout_s)
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        for orders in self.orders.values():
            orders.close()
        self.hub.release(self.name)

    def status(self) -> SinkStatus:
        data, orders = self.data.counts(), self.orders.values()
        errors = (self.link.error, self.data.error, *(publisher.error for publisher in orders))
        delivered, dropped = name_counts(self.data.delivered_kinds), name_counts(self.data.dropped_kinds)
        if self.orders:
            delivered[ORDER_UPDATE] = sum(publisher.delivered for publisher in orders)
            dropped[ORDER_UPDATE] = sum(publisher.dropped for publisher in orders)
        return SinkStatus(
            name=self.name,
            is_ready=self.link.is_working,
            clients=self.holds.clients,
            offered=data["offered"] + sum(publisher.offered for publisher in orders),
            delivered=data["delivered"] + sum(publisher.delivered for publisher in orders),
            conflated=data["conflated"],
            dropped=data["dropped"] + sum(publisher.dropped for publisher in orders),
            waiting=data["waiting"] + sum(publisher.waiting for publisher in orders),
            error=next(filter(None, errors), ""),
            delivered_types=delivered,
            dropped_types=dropped,
        )

    def note_state(self, feed: str, state: str) -> None:
        """Tell how an upstream stands."""
        level = "warning" if state in ("reconnecting", "error") else "info"
        self.logs.say(level, "upstream", f"{feed}: {state}", feed=feed, state=str(state))

    async def _flush(self) -> None:
        """Return when what waits is published, or Redis is not there."""
        while self.link.is_working and self._is_unpublished:  # noqa: ASYNC110 - many parts, and only at the end
            await asyncio.sleep(FLUSH_CHECK_S)

    @property
    def _is_unpublished(self) -> bool:
        orders = any(orders.waiting and orders.is_identified for orders in self.orders.values())
        return bool(orders or self.data.waiting or self.logs.waiting or self._changed)

    # --- one session

    def _note_attempt(self) -> None:
        self._attempted.set()

    async def _prepare(self, connection: RedisConnection) -> None:
        self._subscribed.clear()
        now_s = self.hub.clock.monotonic()
        reply = await connection.demand(b"HGETALL", HOLDS_KEY)
        kept = {field.decode("utf-8", "replace"): value for field, value in zip(reply[::2], reply[1::2], strict=True)}
        if not self._is_restored:
            self._restore(dict(kept), now_s)
            self._is_restored = True
        # From now on what is known here is the truth, also for a Redis that has forgotten it, or has an older one.
        names = [ACCOUNT_FIELD + name for name in self._names]
        self._changed.update(dict.fromkeys((*kept, *self.holds.symbols, *names)))
        await self._write_changed(connection)
        self.holds.note_restart(now_s)
        self._names = {name: (environment, now_s) for name, (environment, _) in self._names.items()}

    def _build_session(self, commands: RedisConnection, listener: RedisConnection) -> list[Coroutine[Any, Any, None]]:
        subscribe = encode_command(b"SUBSCRIBE", REGISTRATION.encode(), LEGACY_REGISTRATION.encode())
        return [
            listener.listen(subscribe, self._take_push, ping_s=PING_S),
            self.logs.run(commands),
            self.data.run(commands),
            *(orders.run(commands) for orders in self.orders.values()),
            self._keep_holds(commands),
            self._look_around(commands),
        ]

    def _take_push(self, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            raise RedisError(f"SUBSCRIBE: {reply.text}")
        if not isinstance(reply, list) or not reply:
            return  # an answer to PING
        if reply[0] == b"subscribe":
            self._subscribed.add(reply[1])
            if len(self._subscribed) == 2 and not self.link.is_working:
                self._note_working()
        elif reply[0] == b"message" and not self._is_stopping:
            try:
                self._take_message(reply[1].decode(), reply[2])
            except Exception as error:  # whatever a stranger has sent, those after it are heard
                _log.exception("a registration could not be handled")
                self._refuse(f"internal error: {type(error).__name__}", reply[1].decode())

    def _note_working(self) -> None:
        self.link.note_working()
        if not self._has_started:
            self._has_started = True
            symbols = len(self.holds)
            self.logs.say(
                "info", "start", "the hub listens to registrations", epoch=self.hub.bus.epoch, symbols_held=symbols
            )
        else:
            self.logs.say(
                "warning", "connected", "Redis was away; the hub listens again", reasons=list(self.link.errors)
            )
            self.link.errors.clear()

    # --- registrations

    def _take_message(self, channel: str, data: bytes) -> None:
        try:
            registration = parse_registration(data)
        except CodecError as error:
            self._refuse(error.reason, channel)
            return
        self._take_registration(registration, channel, self.hub.clock.monotonic() + ACCOUNT_WAIT_S)

    def _take_registration(self, registration: Registration, channel: str, until_s: float) -> None:
        environment = ""
        if registration.account_id:
            found = self._find_account(registration.account_id)
            if found is None and self._is_account_open and self.hub.clock.monotonic() < until_s:
                self._defer(registration, channel, until_s)
                return
            if found is None:
                self._refuse(self._describe_accounts(registration.account_id), channel, registration)
                return
            environment = found
        if registration.adds:
            self._register(registration, environment, channel)
        else:
            self._unregister(registration, channel)

    def _register(self, registration: Registration, environment: str, channel: str) -> None:
        now_s = self.hub.clock.monotonic()
        try:
            self.holds.add(registration, now_s)
        except CodecError as error:
            self._refuse(error.reason, channel, registration)
            return
        try:
            self._follow(registration.symbols)
        except ConfigError as error:
            self.holds.remove(registration)
            self._follow(registration.symbols)
            self._refuse(str(error), channel, registration)
            return
        if environment:
            self._note_name(registration.account_id, environment, now_s)
        self._note_changed(registration.symbols)
        self.registrations += 1
        self._say_taken("registered", registration, registration.symbols)

    def _unregister(self, registration: Registration, channel: str) -> None:
        released = self.holds.remove(registration)
        if not released and (registration.symbols or registration.client_id):
            whose = f"by client {registration.client_id!r}" if registration.client_id else "without a client_id"
            what = ", ".join(registration.symbols[:10]) or "nothing"
            self._refuse(f"{what}: not held {whose}", channel, registration)
            return
        self._follow(released)
        self._note_changed(released)
        self.registrations += 1
        self._say_taken("unregistered", registration, released)

    def _say_taken(self, event: str, registration: Registration, symbols: Any) -> None:
        facts: dict[str, Any] = {"symbols": list(symbols)}
        channels = registration.channels or ((TRADES,) if registration.adds else ())
        if symbols and channels:
            facts["channels"] = list(channels)
        for key, value in (("account_id", registration.account_id), ("client_id", registration.client_id)):
            if value:
                facts[key] = value
        shown = ", ".join(symbols[:10]) + (f" and {len(symbols) - 10} more" if len(symbols) > 10 else "")
        what = f"{shown}: {', '.join(channels)}" if channels and symbols else shown
        self.logs.say("info", event, f"{event} {what or registration.account_id}", **facts)

    def _refuse(self, reason: str, channel: str, registration: Registration | None = None) -> None:
        self.refusals += 1
        facts = {"client_id": registration.client_id} if registration is not None and registration.client_id else {}
        self.logs.say("warning", "refused", reason, channel=channel, **facts)

    def _note_changed(self, fields: Any) -> None:
        self._changed.update(dict.fromkeys(fields))
        self._has_changed.set()

    def _follow(self, symbols: Any) -> None:
        """Ask the hub for what the holds of `symbols` want now, and for no more than that.

        Raises:
            ConfigError: the hub does not offer it.
        """
        for symbol in symbols:
            wanted, followed = self.holds.topics_of(symbol), set(self._followed.held(symbol))
            self.hub.hold(self.name, wanted - followed)
            self.data.attach(self._followed.acquire(symbol, wanted))
            if removed := self._followed.release(symbol, followed - wanted):
                self.data.detach(removed)
                self.hub.release(self.name, removed)

    # --- accounts

    @property
    def _is_account_open(self) -> bool:
        """Tell whether there is an account of which Alpaca has not told the id yet."""
        return any(not account.account_id for account in self._accounts)

    def _find_account(self, name: str) -> str | None:
        for account in self._accounts:
            names = filter(None, (account.account_id, account.account_number))
            if name.casefold() in (known.casefold() for known in names):
                return account.environment
        return None

    def _describe_accounts(self, name: str) -> str:
        if self._is_account_open:
            return f"account_id {name!r}: cannot be checked, as Alpaca has not told the account's id yet"
        held = " and ".join(account.environment for account in self._accounts)
        return f"account_id {name!r}: not an account of this hub, which holds {held or 'no account'}"

    def _defer(self, registration: Registration, channel: str, until_s: float) -> None:
        if len(self._deferred) >= MOST_DEFERRED:
            self._refuse("too many registrations wait for Alpaca to tell the account's id", channel, registration)
            return
        self._deferred.append((registration, channel, until_s))

    def _note_name(self, name: str, environment: str, now_s: float) -> None:
        """Remember how an account is spelled, when that is neither its id nor its number."""
        account = self.hub.account(environment)
        if account is None or name in (account.account_id, account.account_number):
            return
        if name not in self._names and len(self._names) >= MOST_NAMES:
            oldest = min(self._names, key=lambda known: self._names[known][1])
            del self._names[oldest]
            self._note_changed([ACCOUNT_FIELD + oldest])
        self._names[name] = (environment, now_s)
        self._note_changed([ACCOUNT_FIELD + name])

    def _names_of(self, environment: str) -> list[str]:
        return [name for name, (known, _) in self._names.items() if known == environment]

    # --- who listens

    async def _look_around(self, connection: RedisConnection) -> None:
        while True:
            await asyncio.sleep(self.settings.check_interval_s)
            self._retry_deferred()
            symbols, names = self.holds.symbols, tuple(self._names)
            heard = await self._count_subscribers(connection, symbols, names)
            now_s = self.hub.clock.monotonic()
            patterns = await connection.demand(b"PUBSUB", b"NUMPAT")
            listened = [
                symbol
                for symbol in symbols
                if heard[price_channel(symbol)] or heard[legacy_channel(symbol)] or heard[bar_channel(symbol)]
            ]
            ended = self.holds.check(listened, has_patterns=patterns > 0, now_s=now_s)
            if ended:
                self._follow(ended)
                self._note_changed(ended)
                shown = ", ".join(ended[:10]) + (f" and {len(ended) - 10} more" if len(ended) > 10 else "")
                message = f"nobody has listened for {self.settings.lease_s:g} s: {shown}"
                self.logs.say("warning", "expired", message, symbols=ended)
            for orders in self.orders.values():
                orders.has_listeners = patterns > 0 or any(heard.get(channel) for channel in orders.channels)
            for name in names:
                environment, alive_s = self._names.get(name, ("", now_s))
                if heard[order_channel(name)] or patterns:
                    self._names[name] = (environment, now_s)
                elif environment and now_s - alive_s >= self.settings.lease_s:
                    del self._names[name]
                    self._note_changed([ACCOUNT_FIELD + name])
            if now_s >= self._renew_at_s:
                self._has_changed.set()

    def _retry_deferred(self) -> None:
        for _ in range(len(self._deferred)):
            self._take_registration(*self._deferred.popleft())

    async def _count_subscribers(
        self, connection: RedisConnection, symbols: tuple[str, ...], names: tuple[str, ...]
    ) -> dict[str, int]:
        channels = [name for symbol in symbols for name in (price_channel(symbol), legacy_channel(symbol))]
        channels += [bar_channel(symbol) for symbol in symbols]
        channels += [order_channel(name) for name in names]
        channels += [name for orders in self.orders.values() for name in orders.channels]
        found: dict[str, int] = {}
        for start in range(0, len(channels), CHUNK):
            part = [channel.encode() for channel in channels[start : start + CHUNK]]
            counts = await connection.demand(b"PUBSUB", b"NUMSUB", *part)
            found |= {channel.decode(): count for channel, count in zip(counts[::2], counts[1::2], strict=True)}
        return found

    # --- what outlasts the hub

    def _restore(self, stored: dict[str, bytes], now_s: float) -> None:
        for field in [field for field in stored if field.startswith(ACCOUNT_FIELD)]:
            environment = stored.pop(field).decode("utf-8", "replace")
            if environment in self.orders and len(self._names) < MOST_NAMES:
                self._names[field.removeprefix(ACCOUNT_FIELD)] = (environment, now_s)
        try:
            unread = self.holds.restore(stored, now_s)
        except CodecError as error:
            _log.error("not all holds could be restored", reason=error.reason)
        else:
            if unread:
                _log.error("holds that cannot be read were left out", fields=unread[:10])
        self._follow(self.holds.symbols)

    async def _keep_holds(self, connection: RedisConnection) -> None:
        while True:
            self._has_changed.clear()
            await self._write_changed(connection)
            await self._has_changed.wait()

    async def _write_changed(self, connection: RedisConnection) -> None:
        now_s = self.hub.clock.monotonic()
        while self._changed or now_s >= self._renew_at_s:
            fields = list(self._changed)[:CHUNK]
            commands = []
            for field in fields:
                value = self._encode_field(field)
                if value is None:
                    commands.append(encode_command(b"HDEL", HOLDS_KEY, field.encode()))
                else:
                    commands.append(encode_command(b"HSET", HOLDS_KEY, field.encode(), value))
            commands.append(encode_command(b"EXPIRE", HOLDS_KEY, b"%d" % self.settings.hold_expiry_s))
            for field in fields:  # before the replies: what changes meanwhile is written again
                del self._changed[field]
            try:
                replies = await connection.run(commands, len(commands))
            except BaseException:
                self._changed.update(dict.fromkeys(fields))
                raise
            self._renew_at_s = now_s + self.settings.hold_expiry_s / 4
            for reply in replies:
                if isinstance(reply, ReplyError):
                    _log.error("Redis refuses to keep holds", reason=reply.text)
                    break

    def _encode_field(self, field: str) -> bytes | None:
        if field.startswith(ACCOUNT_FIELD):
            found = self._names.get(field.removeprefix(ACCOUNT_FIELD))
            return None if found is None else found[0].encode()
        return self.holds.encode(field)
