"""All of the exchange that a restart has to bring back: venue, accounts, consumers, the open slice. Pure.

It changes by commands alone, and equal commands on equal recordings make equal states. A command is written down before
it is carried out, so that nobody is told of anything that a restart would not know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import msgspec
import structlog

from dry_work.errors import ConfigError
from dry_work.exchange.alpaca_matcher import Matching
from dry_work.exchange.assets import AssetBook
from dry_work.exchange.chance import PartialFills
from dry_work.exchange.commands import (
    Advance,
    Bust,
    Cancel,
    CancelAll,
    ChangeSettings,
    ClosePosition,
    CloseSlice,
    Command,
    CountOrder,
    DeleteWatchlist,
    Exercise,
    Leave,
    OpenAccount,
    Register,
    Replace,
    Report,
    Revise,
    SetWatchlist,
    Submit,
)
from dry_work.exchange.equity import EquityLog
from dry_work.exchange.identifiers import build_watchlist_id
from dry_work.exchange.market import Lockstep, OpenSlice, mark_last
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.option_rules import Settlement
from dry_work.exchange.order_rules import CODE_NOT_FOUND, RefusedError
from dry_work.exchange.sub_accounts import owner_of
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.venue import RuleSet, Venue
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording
from dry_work.market.calendar import SessionCalendar
from dry_work.orders.model import TradeEvent

_EVENTS_KEPT = 10_000  # of an account, for streams that were cut

_FILLS = frozenset({"fill", "partial_fill"})

_log = structlog.get_logger(__name__)


class Watchlist(msgspec.Struct, frozen=True, kw_only=True):
    """A named list of symbols."""

    id: str
    name: str
    symbols: tuple[str, ...]
    created_ns: int
    updated_ns: int


class AccountRecord:
    """What is remembered of an account beside its books."""

    def __init__(self, equity: EquityLog, *, opened_ns: int, details: Mapping[str, Any]) -> None:
        self.equity = equity
        self.opened_ns = opened_ns
        self.details = details  # of its owner
        self.fills: list[TradeEvent] = []
        self.settlements: list[Settlement] = []
        self.events: deque[TradeEvent] = deque(maxlen=_EVENTS_KEPT)
        self.forgot_events = False
        self.watchlists: dict[str, Watchlist] = {}

    @property
    def last_event_id(self) -> str:
        """Id of the account's last trade event, empty when there was none."""
        return self.events[-1].event_id if self.events else ""

    def add(self, event: TradeEvent) -> None:
        """Enter a trade event."""
        if event.event in _FILLS:
            self.fills.append(event)
        self.forgot_events = self.forgot_events or len(self.events) == _EVENTS_KEPT
        self.events.append(event)

    def events_after(self, event_id: str) -> list[TradeEvent] | None:
        """Return the events behind the one with this id, or with one between two of them; None when some are gone."""
        found: list[TradeEvent] = []
        for event in reversed(self.events):
            if event.event_id <= event_id:
                return found[::-1]
            found.append(event)
        return None if self.forgot_events else found[::-1]


class ExchangeState:
    """The state of an exchange that plays `recording`.

    Args:
        recording: the bars.
        tables: what is served of them.
        rules: rule set of the venue.
        cash: of a new account.
        expected: consumers that have to be there before the first slice.
        calendar: sessions of the stock market.
        changes_in_flight: cancels and replacements may lose to a fill in the next slice.
        matching: what orders are matched against; with `ticks` it is `ticks` as well, where there are some.
        ticks: recorded trades and quotes.
        refuse_wash_trades: orders that would trade with the account's own.
        chains: the options that trade.
        traits: what may be done with the assets.
        partial_fills: decides which orders get a part first.
        write: keeps a command that is about to be carried out; its second argument tells whether somebody will rely on
            it. Not called for commands that are replayed.
        tell: takes every trade event with the key of its account, in order.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        tables: MarketTables,
        rules: RuleSet,
        cash: Decimal,
        expected: int,
        calendar: SessionCalendar,
        changes_in_flight: bool = False,
        matching: Matching = "bars",
        ticks: TickRecording | None = None,
        refuse_wash_trades: bool = True,
        chains: OptionChains | None = None,
        traits: AssetBook | None = None,
        partial_fills: PartialFills | None = None,
        write: Callable[[Command, bool], None] | None = None,
        tell: Callable[[str, TradeEvent], None] | None = None,
    ) -> None:
        ends = recording.slice_ends()
        if not len(ends):
            raise ConfigError("the recording has no bars: there is nothing to play")
        self.slices = len(ends)
        self.start_ns = int(ends[0]) - recording.length_ns
        self.end_ns = int(ends[-1])
        self.venue = Venue(
            rules=rules,
            assets=recording.symbols,
            emit=self._note_event,
            now_ns=self.start_ns,
            is_open=calendar.is_open,
            session_close_ns=calendar.session_close_ns,
            changes_in_flight=changes_in_flight,
            matching=matching,
            ticks=ticks,
            refuse_wash_trades=refuse_wash_trades,
            chains=chains,
            traits=traits,
            partial_fills=partial_fills,
            settle=lambda key_id, settlement: self.accounts[key_id].settlements.append(settlement),
        )
        self.lockstep = Lockstep(expected)
        self.accounts: dict[str, AccountRecord] = {}
        self.current: OpenSlice | None = None  # the last slice that was opened
        self.order_count = 0
        self.fill_count = 0
        self._tables = tables
        self._cash = cash
        self._write = write
        self._tell = tell
        self._is_replaying = False
        self._watchlists_made = 0
        self._slices = mark_last(recording.slices())
        self._upcoming = next(self._slices, None)

    def execute(self, command: Command, *, relied_on: bool = True) -> Any:
        """Write a command down, carry it out, and return what it gives.

        Raises:
            RefusedError: as the part that carries it out.
        """
        if self._write is not None:
            self._write(command, relied_on)
        return self._carry_out(command)

    def replay(self, commands: Iterable[Command]) -> None:
        """Carry out commands that were written down before.

        Raises:
            ConfigError: they do not fit the recording, or make something else of it than they did.
        """
        self._is_replaying = True
        try:
            for number, command in enumerate(commands, start=1):
                try:
                    self._carry_out(command)
                except RefusedError:
                    pass  # as it was when it came
                except Exception as error:
                    if isinstance(command, Advance):
                        raise ConfigError(f"line {number + 1}: {error}") from error
                    # It failed in the same way when it came, and was answered as an internal error.
                    _log.warning("a command fails again", line=number + 1, error=repr(error))
        finally:
            self._is_replaying = False

    # What the market player asks

    def upcoming_ns(self) -> int | None:
        """Return the end of the slice that follows, None when none does."""
        return None if self._upcoming is None else self._upcoming[1]

    def advance(self) -> OpenSlice:
        """Open the slice that follows: match its bars, and return it."""
        assert self._upcoming is not None
        number, end_ns, _, _ = self._upcoming
        self.execute(Advance(number=number, end_ns=end_ns, event_id=self.venue.last_event_id))
        assert self.current is not None
        return self.current

    def close_slice(self) -> None:
        """End the open slice."""
        # What follows writes it to disk; without anything that follows the slice is still open after a restart.
        self.execute(CloseSlice(number=self.lockstep.number), relied_on=False)

    def leave(self, consumer: str) -> None:
        """Wait for a consumer no longer."""
        self.execute(Leave(consumer=consumer))

    # Commands

    def _carry_out(self, command: Command) -> Any:
        match command:
            case Advance():
                return self._advance(command)
            case CloseSlice():
                return self.lockstep.close()
            case Report(consumer=consumer, key_id=key_id, number=number, orders=orders):
                return self.lockstep.report(consumer, key_id=key_id, number=number, orders=orders)
            case Register(consumer=consumer, key_id=key_id, symbols=symbols, resume=resume):
                return self.lockstep.register(consumer, key_id=key_id, symbols=symbols, resume=resume)
            case Leave(consumer=consumer):
                return self.lockstep.leave(consumer)
            case Submit(key_id=key_id, request=request):
                self._count_order(key_id)
                return self.venue.submit(key_id, request)
            case CountOrder(key_id=key_id):
                return self._count_order(key_id)
            case Replace(key_id=key_id, order_id=order_id, change=change):
                return self.venue.replace(key_id, order_id, change)
            case Cancel(key_id=key_id, order_id=order_id):
                return self.venue.cancel(key_id, order_id)
            case CancelAll(key_id=key_id):
                return self.venue.cancel_all(key_id)
            case ClosePosition(key_id=key_id, symbol=symbol, qty=qty, percentage=percentage):
                return self.venue.close_position(key_id, symbol, qty=qty, percentage=percentage)
            case Exercise(key_id=key_id, symbol=symbol):
                return self.venue.exercise(key_id, symbol)
            case OpenAccount(key_id=key_id, details=details):
                self.venue.open_account(key_id, cash=self._cash)
                equity = EquityLog(self.venue.now_ns, self._cash)
                self.accounts[key_id] = AccountRecord(equity, opened_ns=self.venue.now_ns, details=details)
            case Bust(key_id=key_id, execution_id=execution_id):
                return self._take_back(key_id, execution_id)
            case ChangeSettings(key_id=key_id, settings=settings):
                return self.venue.change_settings(key_id, settings)
            case SetWatchlist():
                return self._set_watchlist(command)
            case DeleteWatchlist(key_id=key_id, watchlist_id=watchlist_id):
                self.accounts[key_id].watchlists.pop(watchlist_id, None)
            case Revise(symbol=symbol, start_ns=start_ns, values=values):
                return self._tables.revise(symbol, start_ns, values, now_ns=self.venue.now_ns)
        return None

    def _advance(self, command: Advance) -> OpenSlice:
        if self._upcoming is None:
            raise ConfigError(f"slice {command.number} is not in the recording: it has {self.slices}")
        number, end_ns, bars, last = self._upcoming
        if (command.number, command.end_ns) != (number, end_ns):
            raise ConfigError(f"slice {command.number} ended at {command.end_ns} ns, here slice {number} at {end_ns}")
        if command.event_id != self.venue.last_event_id:
            raise ConfigError(
                f"before slice {number} the last trade event was {command.event_id or 'none'}, and is "
                f"{self.venue.last_event_id or 'none'} now: another version of the program has written the log"
            )
        self._upcoming = next(self._slices, None)
        self.lockstep.open(number)
        self.venue.advance(end_ns, bars)
        for key_id, record in self.accounts.items():
            record.equity.add(end_ns, self.venue.equity(key_id))
        self.current = OpenSlice(
            number=number, end_ns=end_ns, bars=tuple(bars), event_id=self.venue.last_event_id, last=last
        )
        return self.current

    def _count_order(self, key_id: str) -> None:
        self.order_count += 1
        self.lockstep.count_order(owner_of(key_id))  # a consumer reports the orders of all its accounts

    def _take_back(self, key_id: str, execution_id: str) -> TradeEvent:
        record = self.accounts[key_id]
        fill = next((fill for fill in record.fills if fill.execution_id == execution_id), None)
        if fill is None:
            raise RefusedError(404, CODE_NOT_FOUND, f"execution not found for {execution_id[:40]}")
        rest = [other for other in record.fills if other is not fill]
        self.venue.take_back(key_id, fill, rest)
        record.fills = rest
        return fill

    def _set_watchlist(self, command: SetWatchlist) -> Watchlist:
        known = self.accounts[command.key_id].watchlists
        now_ns = self.venue.now_ns
        before = known.get(command.watchlist_id)
        if before is None:
            self._watchlists_made += 1
        made = Watchlist(
            id=build_watchlist_id(command.key_id, self._watchlists_made) if before is None else before.id,
            name=command.name,
            symbols=command.symbols,
            created_ns=now_ns if before is None else before.created_ns,
            updated_ns=now_ns,
        )
        known[made.id] = made
        return made

    def _note_event(self, key_id: str, event: TradeEvent) -> None:
        self.fill_count += event.event in _FILLS
        self.accounts[key_id].add(event)
        if self._tell is not None and not self._is_replaying:
            self._tell(key_id, event)
