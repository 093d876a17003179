"""The NATS interface: orders and cancellations in; trade updates, bars, news and positions out. Event-loop only.

Of several hubs at one NATS server each part is done by one; the others stand by. Nothing of it needs NATS to be there:
what goes out waits, and what comes in waits in NATS.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext

from dry_work.errors import BrokerError, ConfigError, HubError
from dry_work.hub.access import Access
from dry_work.hub.message_types import ORDER_UPDATE, name_counts
from dry_work.hub.ports import HubPort, SinkStatus
from dry_work.hub.sinks.nats_actions import ActionDesk
from dry_work.hub.sinks.nats_data import DataPublisher, Subscriptions
from dry_work.hub.sinks.nats_items import ItemPublisher
from dry_work.hub.sinks.nats_lease import build_leases
from dry_work.hub.sinks.nats_link import CLOSE_TIMEOUT_S, FAILURES, REQUEST_TIMEOUT_S, NatsLink, end_tasks
from dry_work.hub.sinks.nats_queue import ActionQueue, ResultPublisher, Sweep
from dry_work.hub.sinks.nats_settings import NatsSettings, StreamSettings
from dry_work.hub.sinks.nats_topology import Topology
from dry_work.hub.sinks.nats_updates import PositionWriter, UpdatePublisher
from dry_work.hub.sinks.subscription_memory import SubscriptionMemory

if TYPE_CHECKING:
    from dry_work.hub.sinks.subscription_api import SubscriptionApi

START_WAIT_S = 3.0  # for NATS, before the hub goes on without
ORDERS, CANCELS, UPDATES, BARS, NEWS = "orders", "cancels", "updates", "bars", "news"
SWEEP = "sweep"  # goes along with orders and cancellations
_SWITCHES = {ORDERS: "ENABLE_ORDERS", CANCELS: "ENABLE_CANCELER", UPDATES: "ENABLE_TRADE_UPDATER"}

_log = structlog.get_logger(__name__)


class NatsSink:
    """The hub at a NATS server.

    Args:
        hub: gives events and the account.
        settings: which parts, and how.
        access: who may use the subscription API, and where it listens; not needed without.
        state_dir: folder that keeps over a restart what is not published, and the symbols of the subscription API;
            None: nothing is kept.
    """

    name = "nats"

    def __init__(
        self,
        hub: HubPort,
        settings: NatsSettings,
        *,
        access: Access | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self.hub = hub
        self.settings = settings
        self._state_dir = state_dir
        self.link = NatsLink(settings, self._run_session, clock=hub.clock, rng=hub.rng)
        self.topology = Topology(settings)
        self.results = ResultPublisher(self.link, settings, clock=hub.clock)
        self.bars = self._build_data("bars", "ENABLE_STOCK_STREAM", settings.stocks)
        self.news = self._build_data("news", "ENABLE_NEWS_STREAM", settings.news)
        self.items = ItemPublisher(hub, settings.stocks, settings.subjects)
        enabled = {
            ORDERS: settings.takes_orders,
            CANCELS: settings.takes_cancels,
            UPDATES: settings.tells_updates,
            BARS: settings.stocks.is_enabled,
            NEWS: settings.news.is_enabled,
        }
        self._parts = tuple(part for part, is_enabled in enabled.items() if is_enabled)
        self._owner = f"{hub.clock.time_ns():x}-{hub.rng.getrandbits(64):016x}"
        self._leases = build_leases(
            self._parts, prefix=settings.prefix, owner=self._owner, length_s=settings.lease_s, clock=hub.clock
        )
        self.api: SubscriptionApi | None = None
        if settings.api.is_enabled or settings.api.is_proxy_enabled:
            from dry_work.hub.sinks.subscription_api import SubscriptionApi  # brings gRPC along

            self.api = SubscriptionApi(
                self.bars.subscriptions,
                self.news.subscriptions,
                settings.api,
                access=access or Access("127.0.0.1"),
                is_ready=hub.is_ready,
            )
        self._desk: ActionDesk | None = None
        self._queues: dict[str, ActionQueue] = {}
        self._sweep: Sweep | None = None
        self._updates: UpdatePublisher | None = None
        self._positions: PositionWriter | None = None
        self._running: dict[str, list[asyncio.Task[None]]] = {}  # of the session, by part
        self._serving: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] | None = None  # session
        self._is_stopping = False
        self._takes_actions = True

    @property
    def acting(self) -> tuple[str, ...]:
        """The parts that this hub does now."""
        return tuple(part for part, lease in self._leases.items() if lease.is_held)

    @property
    def outcomes(self) -> Mapping[str, int]:
        """Actions by outcome, since the start."""
        return self.results.outcomes

    async def start(self) -> None:
        self._open_account()
        self._add_symbols()
        if self.api is not None:
            await self.api.start()
        if self._updates is not None:
            self._updates.attach()
        self._first = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self.link.serve(), name="hub-nats")
        try:
            await asyncio.wait_for(asyncio.shield(self._first), START_WAIT_S)
        except TimeoutError:
            self._first = None
            _log.warning("NATS did not answer in time; trying on", servers=self.settings.servers)
        except ConfigError:
            await self.stop(0.0)
            raise

    async def finish_actions(self, timeout_s: float) -> bool:
        """Take no more actions, and finish those under way; what has no outcome in time is delivered again."""
        self._takes_actions = False
        if self._desk is None:
            return False
        self._desk.stop()
        was_busy = any(queue.in_flight for queue in self._queues.values())
        await self._end_parts((*self._queues, SWEEP))
        await asyncio.gather(*(queue.finish(timeout_s) for queue in self._queues.values()))
        return was_busy

    async def stop(self, timeout_s: float) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        if self.api is not None:
            await self.api.stop(min(1.0, timeout_s))
        if self._serving is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(end_s):
                    await self._drain(end_s)
            await self._end_parts((*self._parts, SWEEP))
            for queue in self._queues.values():
                await queue.finish(0.0)
            await end_tasks([self._serving], every_s=3 * CLOSE_TIMEOUT_S)
        if self._updates is not None:
            self._updates.close()
        self.bars.close()
        self.items.close()
        self.news.close()

    def status(self) -> SinkStatus:
        counts = [data.counts() for data in (self.bars, self.items, self.news)]
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        updates = self._updates
        if updates is not None:
            totals["offered"] += updates.offered
            totals["delivered"] += updates.published
            totals["waiting"] += updates.waiting
        errors = (
            self.link.error,
            self._desk.refusal if self._desk is not None else "",
            updates.error if updates is not None else "",
            self._positions.error if self._positions is not None else "",
        )
        error = next(filter(None, errors), "")
        delivered = name_counts(self.bars.delivered_kinds + self.items.delivered_kinds + self.news.delivered_kinds)
        if updates is not None:
            delivered[ORDER_UPDATE] = updates.published
        return SinkStatus(
            name=self.name,
            is_ready=self.link.is_connected and not error,
            error=error,
            delivered_types=delivered,
            dropped_types=name_counts(self.bars.dropped_kinds + self.items.dropped_kinds + self.news.dropped_kinds),
            results=dict(self.results.results),
            failures=dict(self.bars.failures),
            **totals,
        )

    # --- what there is

    def _build_data(self, channel: str, switch: str, settings: StreamSettings) -> DataPublisher:
        name = f"nats-{self.settings.prefix}-{channel}.symbols.json"
        memory = SubscriptionMemory(None if self._state_dir is None else self._state_dir / name, settings.symbols)
        subscriptions = Subscriptions(
            self.hub, channel=channel, switch=switch, is_enabled=settings.is_enabled, memory=memory
        )
        return DataPublisher(self.hub, subscriptions, settings, self.settings.subjects)

    def _add_symbols(self) -> None:
        for data, settings in ((self.bars, self.settings.stocks), (self.news, self.settings.news)):
            if settings.is_enabled:
                data.subscriptions.restore()

    def _open_account(self) -> None:
        needing = [_SWITCHES[part] for part in self._parts if part in _SWITCHES]
        if not needing:
            return
        settings, hub = self.settings, self.hub
        account = hub.account(settings.environment)
        if account is None:
            raise ConfigError(
                f"{', '.join(needing)}: the hub has no credentials for the {settings.environment} account; "
                "set ALPACA_API_KEY and ALPACA_API_SECRET, and ALPACA_URL if it is the live one"
            )
        desk = self._desk = ActionDesk(account, settings, clock=hub.clock, rng=hub.rng)
        for part, consumer in ((ORDERS, settings.order_consumer), (CANCELS, settings.cancel_consumer)):
            if part in self._parts:
                self._queues[part] = ActionQueue(
                    consumer,
                    link=self.link,
                    desk=desk,
                    results=self.results,
                    topology=self.topology,
                    settings=settings,
                )
        if self._queues:
            self._sweep = Sweep(
                self._held_queues, desk=desk, results=self.results, topology=self.topology, settings=settings
            )
        if UPDATES in self._parts:
            self._updates = UpdatePublisher(hub, self.link, settings, state_dir=self._state_dir)
            self._positions = PositionWriter(account, self._updates.positions_changed, clock=hub.clock, rng=hub.rng)

    def _held_queues(self) -> list[ActionQueue]:
        return [queue for part, queue in self._queues.items() if self._leases[part].is_held]

    # --- one connection

    async def _run_session(self, client: Client) -> None:
        js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        try:
            await self.topology.ensure(js)
        except ConfigError as error:
            if self._first is not None and not self._first.done():
                self._first.set_exception(error)
            raise
        if self._updates is not None and self.settings.data_stream in self.topology.created:
            self._updates.note_stream_lost()
        self.link.note_success()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        if BARS in self._leases:
            await self.items.listen(client)
        try:
            if self._sweep is not None:
                self._running[SWEEP] = [asyncio.create_task(self._look_around(self._sweep, js), name="hub-nats-sweep")]
            while not self._is_stopping:
                await self._tend(client, js)
                await self._wait_a_while()
            await asyncio.Event().wait()  # `stop` does the rest, and ends this
        finally:
            await self._end_parts((*self._parts, SWEEP))

    async def _look_around(self, sweep: Sweep, js: JetStreamContext) -> None:
        while True:
            if self._held_queues():
                await sweep.run(js)
            await asyncio.sleep(self.settings.check_interval_s)

    async def _tend(self, client: Client, js: JetStreamContext) -> None:
        """Look after the leases, and what goes with them."""
        state = await self.topology.state(js)
        for part, lease in self._leases.items():
            lease.check()
            if part == UPDATES and self._updates is not None:
                lease.note = self._updates.last_id or lease.note_of_other
            was_held, is_held = lease.is_held, await lease.tend(state)
            if part == UPDATES and self._updates is not None and not was_held and lease.note_of_other:
                self._updates.skip(lease.note_of_other)
            if is_held and part not in self._running and (self._takes_actions or part not in self._queues):
                self._running[part] = [
                    asyncio.create_task(work, name=f"hub-nats-{part}") for work in await self._works(part, client, js)
                ]
            elif not is_held:
                await self._end_parts((part,))
            for data in self._data_of(part):
                data.activate(is_active=is_held)
        if self._updates is not None:
            lease = self._leases[UPDATES]
            if lease.is_held:
                await self._updates.note_acknowledged(js)
            elif lease.is_other_alive:
                self._updates.trim(self.hub.clock.time_ns())

    async def _works(self, part: str, client: Client, js: JetStreamContext) -> list[Coroutine[Any, Any, None]]:
        if part in self._queues:
            return [self._queues[part].run(js)]
        if part == UPDATES and self._updates is not None and self._positions is not None:
            bucket = await self.topology.bucket(js)
            return [self._updates.run(js), self._positions.run(bucket)]
        return [data.run(client) for data in self._data_of(part)]

    def _data_of(self, part: str) -> list[DataPublisher]:
        return {BARS: [self.bars, self.items], NEWS: [self.news]}.get(part, [])

    async def _wait_a_while(self) -> None:
        """Wait for the next look; what fails ends the session."""
        tasks = [task for running in self._running.values() for task in running]
        interval_s = self.settings.check_interval_s
        if not tasks:
            await asyncio.sleep(interval_s)
            return
        done, _ = await asyncio.wait(tasks, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()

    async def _end_parts(self, parts: tuple[str, ...]) -> None:
        tasks = [task for part in parts for task in self._running.pop(part, ())]
        await end_tasks(tasks)

    # --- the end

    async def _drain(self, end_s: float) -> None:
        """Finish what is under way, publish what waits, and let another hub act."""
        loop = asyncio.get_running_loop()
        if self._desk is not None:
            self._desk.stop()
        held = self.acting
        await self._end_parts((*self._parts, SWEEP))
        # What cannot be finished in time is delivered again; the rest of the time is for what goes out.
        share_s = max(0.0, end_s - loop.time()) * 0.7
        await asyncio.gather(*(queue.finish(share_s) for queue in self._queues.values()))
        if not self.link.is_connected:
            return
        try:
            js = self.link.context()
            if UPDATES in held and self._updates is not None and self._positions is not None:
                await self._updates.flush(js)
                await self._positions.flush(await self.topology.bucket(js))
            await self._flush_data(held)
            state = await self.topology.state(js)
            for part, lease in self._leases.items():
                if part == UPDATES and self._updates is not None:
                    lease.note = self._updates.last_id or lease.note
                await lease.give_up(state)
        except (*FAILURES, BrokerError) as error:
            _log.warning("NATS was left before all was published", reason=f"{type(error).__name__}: {error}")

    async def _flush_data(self, held: tuple[str, ...]) -> None:
        client = self.link.client
        for part in held:
            for data in self._data_of(part):
                if client is not None:
                    await data.flush(client)


def init_nats(settings: NatsSettings, *, timeout_s: float = 10.0) -> list[str]:
    """Create the streams, consumers and buckets that are missing at NATS; return the names of those created.

    Raises:
        ConfigError: something that is there cannot be used; says what differs.
        HubError: NATS is not there, or does not do it.
    """

    async def create() -> list[str]:
        client = Client()
        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(
                    servers=list(settings.servers),
                    user=settings.user or None,
                    password=settings.password or None,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    error_cb=_ignore,
                )
                topology = Topology(settings)
                await topology.ensure(client.jetstream())
                return topology.created
        except FAILURES as error:
            servers = ", ".join(settings.servers)
            raise HubError(f"NATS at {servers} (NATS_URL) is not usable: {type(error).__name__} {error}") from error
        finally:
            with contextlib.suppress(*FAILURES):
                await client.close()

    return asyncio.run(create())


async def _ignore(_: Exception) -> None:
    return
