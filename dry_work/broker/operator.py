"""Halting, releasing and flattening an agent from another process: by its state directory and, if need be, by REST."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from dry_work.alpaca.limits import Priority
from dry_work.alpaca.venue_api import VenueApi
from dry_work.alpaca.venues import choose_account_id, open_venue
from dry_work.broker.flatten import Flattening, cancel_entries, run_flattening
from dry_work.broker.journal import JOURNAL_NAME, AccountRecord, Journal, RiskRecord, describe_record
from dry_work.broker.risk_requests import RiskRequest, foresee_state
from dry_work.clock import Clock, SystemClock
from dry_work.errors import BrokerError, ConfigError
from dry_work.feeds.lease_holder import read_holder
from dry_work.orders.risk import RiskCommand, RiskState
from dry_work.orders.risk_limits import OpenOrders, RiskLimits
from dry_work.settings import Credentials

ANSWER_S = 3.0  # a trader whose brake works takes note within a fraction of this
FLATTEN_S = 30.0
_POLL_S = 0.1

Tell = Callable[[str], None]


class AgentPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A state directory, and who uses it."""

    path: Path
    agents: tuple[str, ...] = ()  # ids that have used it
    pid: int | None = None  # of the trader that holds it now

    @property
    def name(self) -> str:
        """Return it for people."""
        return f"agent {self.agents[0]}" if len(self.agents) == 1 else f"state directory {self.path}"


def find_agent(agent: str | None, roots: list[Path]) -> AgentPlace:
    """Return where an agent keeps its state.

    Args:
        agent: its id; None: the only one that is running, or the only one at all.
        roots: state directories to look in, as they are given to `--state-dir`.

    Raises:
        ConfigError: naming what was not found, or the agents to choose from.
    """
    there = [root for root in roots if root.is_dir()]
    if not there:
        raise ConfigError(f"state directory {', '.join(map(str, roots))}: does not exist; name one with --state-dir")
    places = [place for root in there for place in _list_places(root)]
    where = ", ".join(map(str, there))
    if not places:
        raise ConfigError(f"state directory {where}: no agent has run with it")
    names = sorted({name for place in places for name in place.agents})
    if agent is not None:
        found = [place for place in places if agent in place.agents]
        if not found:
            raise ConfigError(f"no agent {agent!r} in {where}; there are: {', '.join(names) or 'none with a name'}")
    else:
        found = [place for place in places if place.pid is not None] or places
    if len(found) > 1:
        listed = ", ".join(sorted({name for place in found for name in place.agents}))
        raise ConfigError(f"several agents in {where}: {listed}; name one of them, or its --state-dir")
    return found[0]


def _list_places(root: Path) -> Iterator[AgentPlace]:
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("local/*/"))):
        locks = sorted(folder.glob("agent-*.lock"))
        if locks or (folder / JOURNAL_NAME).is_file():
            holders = [read_holder(lock) for lock in locks]
            # One on another machine counts as running.
            pids = [holder.pid for holder in holders if holder.pid is not None and holder.is_alive is not False]
            agents = tuple(lock.name.removeprefix("agent-").removesuffix(".lock") for lock in locks)
            yield AgentPlace(path=folder, agents=agents, pid=pids[0] if pids else None)


class Operator:
    """Acts on one agent from outside. Every method may be repeated, also by several processes at once.

    Args:
        place: of the agent.
        tell: takes lines for people.
        credentials: returns the key pair for an account's mode; raises ConfigError when there is none.
        limits: of the agent, for what a halt does with open orders.
        account_id: of the Broker API, as ALPACA_ACCOUNT_ID names it; empty: none.
    """

    def __init__(
        self,
        place: AgentPlace,
        *,
        tell: Tell,
        credentials: Callable[[str], Credentials],
        limits: RiskLimits,
        account_id: str = "",
        clock: Clock | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._place = place
        self._tell = tell
        self._credentials = credentials
        self._limits = limits
        self._account_id = account_id
        self._clock = clock or SystemClock()
        self._timeout_s = timeout_s

    def halt(self, reason: str) -> bool:
        """Stop the agent's orders; tell whether its open orders are dealt with too."""
        with self._journal() as journal:
            record = self._change(journal, RiskCommand.HALT, reason)
            if record is None:
                return False
            self._tell(f"{self._place.name} is {describe_record(record)}")
            if self._is_answered(journal, record):
                self._tell(f"the trader (process {self._place.pid}) has taken note of it and sends no orders")
                return True
            if record.state is not RiskState.HALTED or self._limits.open_orders is OpenOrders.KEEP:
                return True
            everything = self._limits.open_orders is OpenOrders.CANCEL_ALL
            with self._venue(journal, "open orders are left as they are") as found:
                if found is None:
                    return False
                api, account = found
                canceled = cancel_entries(api, agent=account.agent, everything=everything)
                self._tell(f"canceled: {_count(canceled)}")
                left = api.open_orders()
                if left:
                    self._tell(f"left open: {_count([order.symbol for order in left])}")
                return True

    def release(self, reason: str) -> bool:
        """Let the agent trade again."""
        with self._journal() as journal:
            if foresee_state(journal.risk().state, journal.requests.list()) is RiskState.ACTIVE:
                self._tell(f"{self._place.name} is not halted")
                return True
            record = self._change(journal, RiskCommand.RELEASE, reason)
            if record is None:
                return False
            self._tell(f"{self._place.name} is {describe_record(record)}")
            if self._is_answered(journal, record):
                self._tell(f"the trader (process {self._place.pid}) has taken note of it and trades again")
            return True

    def flatten(self, reason: str, *, timeout_s: float = FLATTEN_S) -> bool:
        """Cancel all orders and close all positions of the agent's account; tell whether nothing is left."""
        deadline_s = time.monotonic() + timeout_s
        with self._journal() as journal:
            record = self._change(journal, RiskCommand.FLATTEN, reason)
            is_recorded = record is not None
            if record is not None:
                self._tell(f"{self._place.name} is {describe_record(record)}")
            # What cannot be written down is done all the same.
            record = record or RiskRecord(state=RiskState.FLATTENING, token=secrets.token_hex(4), reason=reason)
            if is_recorded and self._is_answered(journal, record):
                self._tell(f"the trader (process {self._place.pid}) is flattening")
                half_s = (deadline_s + time.monotonic()) / 2
                if self._await(lambda: journal.risk().id != record.id, half_s):
                    self._tell(f"{self._place.name} is {describe_record(journal.risk())}")
                    return True
                self._tell("the trader takes too long: this process goes on with it")
            with self._venue(journal, "nothing is canceled or closed here; the agent does it when it runs") as found:
                if found is None:
                    return False
                return self._flatten_here(journal, record, *found, deadline_s=deadline_s) and is_recorded

    def _flatten_here(
        self, journal: Journal, record: RiskRecord, api: VenueApi, account: AccountRecord, *, deadline_s: float
    ) -> bool:
        flattening = Flattening(agent=account.agent, token=record.token)
        is_recorded = record.id > 0
        is_done = run_flattening(
            flattening,
            api,
            deadline_s=deadline_s,
            may_go_on=lambda: not is_recorded or journal.risk().state is not RiskState.ACTIVE,
        )
        self._tell(flattening.describe())
        if is_done:
            self._tell("nothing is left: no open order, no position")
            if is_recorded or journal.requests.list():
                changed = self._change(journal, RiskCommand.FLATTENED, flattening.describe())
                if changed is not None:
                    self._tell(f"{self._place.name} is {describe_record(changed)}")
            return True
        for held in flattening.positions:
            self._tell(f"left: {held.qty:f} {held.symbol}")
        if flattening.orders:
            self._tell(f"left open: {_count([order.symbol for order in flattening.orders])}")
        if flattening.problem:
            self._tell(f"problem: {flattening.problem}")
        self._tell("run it again to go on; orders that are already there are not sent twice")
        return False

    @contextlib.contextmanager
    def _journal(self) -> Iterator[Journal]:
        journal = Journal(self._place.path / JOURNAL_NAME)
        try:
            yield journal
        finally:
            journal.close()

    def _change(self, journal: Journal, command: RiskCommand, reason: str) -> RiskRecord | None:
        """Change the state; return the change in force, None when it cannot be written.

        A trader that stands still in the middle of a write keeps the journal locked: then the change is asked for
        beside it, and what is returned has no id.
        """
        request = RiskRequest(command=command, reason=reason, who="operator", at_ns=self._clock.time_ns())
        try:
            changed = journal.change_risk(command, reason=reason, who=request.who, at_ns=request.at_ns)
        except (sqlite3.Error, OSError) as error:
            try:
                journal.requests.add(request)
                state = foresee_state(journal.risk().state, journal.requests.list())
            except (sqlite3.Error, OSError) as worse:
                self._tell(f"{journal.path} cannot be written: {worse}; the state is not changed")
                return None
            self._tell(
                f"{journal.path} cannot be written: {error}; the request stands in {journal.requests.folder.name} "
                "beside it, and the trader takes it before an order leaves"
            )
            return RiskRecord(
                state=state, token=secrets.token_hex(4), reason=reason, who=request.who, at_ns=request.at_ns
            )
        return changed or journal.risk()

    def _is_answered(self, journal: Journal, record: RiskRecord) -> bool:
        if self._place.pid is None:
            self._tell("no trader is running with this state directory")
            return False
        if self._await(lambda: _is_taken(journal, record), time.monotonic() + ANSWER_S):
            return True
        self._tell(f"the trader (process {self._place.pid}) does not answer; it will look before its next order leaves")
        return False

    @staticmethod
    def _await(condition: Callable[[], bool], deadline_s: float) -> bool:
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    @contextlib.contextmanager
    def _venue(self, journal: Journal, otherwise: str) -> Iterator[tuple[VenueApi, AccountRecord] | None]:
        """Give the API of the agent's account, None when it cannot be used."""
        account = journal.account()
        if account is None:
            self._tell(f"it is not known whose account it is, since no run has begun: {otherwise}")
            yield None
            return
        try:
            keys = self._credentials(account.mode)
        except ConfigError as error:
            self._tell(f"{error}: {otherwise}")
            yield None
            return
        venue = open_venue(
            keys.key,
            keys.secret,
            url=account.url,
            account_id=choose_account_id(account.url, account.account_id, self._account_id),
            paper=account.mode != "live",
            timeout_s=self._timeout_s,
        )
        api = venue.open_api(priority=Priority.BRAKE)
        try:
            found = api.account()
            if found.id != account.account_id:
                raise ConfigError(
                    f"the credentials are those of another account than {self._place.name} trades with: {otherwise}"
                )
            yield api, account
        except BrokerError as error:
            self._tell(f"{account.url}: {error}")
            raise
        finally:
            api.close()


def _is_taken(journal: Journal, record: RiskRecord) -> bool:
    now = journal.risk()
    if not record.id:
        return not journal.requests.list() and now.taken_ns is not None
    return now.id > record.id or now.taken_ns is not None


def _count(symbols: list[str]) -> str:
    listed = ", ".join(f"{symbols.count(symbol)} {symbol}" for symbol in sorted(set(symbols)))
    return f"{len(symbols)} orders" + (f" ({listed})" if listed else "")
