"""All HTTP APIs of the exchange, put together. Event-loop only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from dry_work.exchange.account_api import AccountApi
from dry_work.exchange.broker_api import BrokerApi, BrokerRoutes
from dry_work.exchange.commands import Command
from dry_work.exchange.control import ControlApi
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.data_sockets import DataSockets
from dry_work.exchange.fault_hooks import FaultApi
from dry_work.exchange.faults import FaultPlan
from dry_work.exchange.history import MarketHistory
from dry_work.exchange.latest import LatestApi
from dry_work.exchange.offerings import OfferedApis, Offerings
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.rest import TradingApi
from dry_work.exchange.state import ExchangeState
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.watchlists import WatchlistApi
from dry_work.feeds.recorded import Recording
from dry_work.market.calendar import SessionCalendar


class ExchangeApis:
    """The APIs of trading, of accounts, of market data, and the exchange's own.

    Args:
        state: what is asked for and changed.
        sockets: take the news and the prices of contracts, and corrections of bars.
        execute: carries out a command.
        describe: returns what is played and how far it is.
        resend: sends the open slice again.
        strike: makes faults of the streams happen.
        now_ns, tick_now_ns: return the market's time, and that of its trades and quotes.

    Attributes:
        offered: what there is beside the recording.
    """

    def __init__(
        self,
        state: ExchangeState,
        recording: Recording,
        *,
        tables: MarketTables,
        chains: OptionChains,
        calendar: SessionCalendar,
        offerings: Offerings,
        sockets: DataSockets,
        credentials: Credentials,
        faults: FaultPlan,
        execute: Callable[[Command], Any],
        describe: Callable[[], dict[str, Any]],
        resend: Callable[[], None],
        strike: Callable[[], None],
        now_ns: Callable[[], int],
        tick_now_ns: Callable[[], int],
    ) -> None:
        venue, accounts = state.venue, state.accounts
        trading = TradingApi(
            venue,
            chains=chains,
            credentials=credentials,
            execute=execute,
            calendar=calendar,
            opened_ns=state.start_ns,
            skew_s=lambda: faults.skew_s,
        )
        account = AccountApi(
            venue,
            credentials=credentials,
            execute=execute,
            fills=lambda key_id: accounts[key_id].fills,
            equity=lambda key_id: accounts[key_id].equity,
            settlements=lambda key_id: accounts[key_id].settlements,
            calendar=calendar,
        )
        watchlists = WatchlistApi(
            venue,
            credentials=credentials,
            execute=execute,
            watchlists=lambda key_id: accounts[key_id].watchlists,
            canonical_symbol=trading.canonical_symbol,
            describe_asset=trading.describe_asset,
        )
        broker = BrokerApi(
            venue,
            credentials=credentials,
            trading=trading,
            account=account,
            details=lambda name: accounts[name].details,
            opened_ns=lambda name: accounts[name].opened_ns,
        )
        self.offered = OfferedApis(
            offerings,
            recording=recording,
            chains=chains,
            tables=tables,
            calendar=calendar,
            sockets=sockets,
            credentials=credentials,
            execute=execute,
            now_ns=now_ns,
        )
        recorded = frozenset(recording.symbols)
        control = ControlApi(
            state.lockstep,
            credentials=credentials,
            execute=execute,
            describe=describe,
            current=lambda: state.current,
            canonical_symbol=trading.canonical_symbol,
            has_bars=lambda symbol: symbol in recorded or chains.contract(symbol) is not None,
            assets=recorded,
            resend=resend,
            tell_revision=sockets.publish_revision,
        )
        self._of_accounts = (trading, account, watchlists, self.offered)
        self._others = (
            broker,
            MarketHistory(tables, credentials=credentials, now_ns=now_ns, tick_now_ns=tick_now_ns),
            LatestApi(tables, credentials=credentials, now_ns=now_ns, tick_now_ns=tick_now_ns),
            control,
            FaultApi(faults, credentials=credentials, execute=execute, strike=strike),
        )

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve them; those of an account also for the accounts of a broker."""
        for part in (*self._of_accounts, *self._others):
            part.add_routes(router)
        for part in self._of_accounts:
            part.add_routes(BrokerRoutes(router))
