"""What the exchange offers beside its recording: options, news, corporate actions, screens. Event-loop only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from dry_work.errors import ConfigError
from dry_work.exchange.assets import AssetBook
from dry_work.exchange.commands import Command
from dry_work.exchange.corporate_actions import CorporateActions, CorporateActionsApi
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.data_sockets import DataSockets
from dry_work.exchange.news import NewsApi, NewsFeed
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.option_market import OptionMarket
from dry_work.exchange.options import OptionApi
from dry_work.exchange.screener import ScreenerApi
from dry_work.exchange.tables import MarketTables
from dry_work.feeds.recorded import Recording
from dry_work.market.calendar import SessionCalendar


@dataclass(frozen=True, kw_only=True)
class Offerings:
    """What is offered; rule set `alpaca` only, but for news and corporate actions."""

    options: bool = True  # synthetic chains of the stocks trade
    assets: AssetBook = field(default_factory=AssetBook)
    partial_fills: float = 0.0  # share of the eligible orders that get a part first
    seed: int = 0  # of that chance
    news: NewsFeed = field(default_factory=NewsFeed)
    actions: CorporateActions = field(default_factory=CorporateActions)

    def __post_init__(self) -> None:
        if not 0 <= self.partial_fills <= 1:
            raise ConfigError(f"a rate of partial fills of {self.partial_fills} is not usable: expected 0 to 1")


class OfferedApis:
    """Serves what is offered, over HTTP and to market-data sessions.

    Args:
        chains: the options.
        sockets: the market-data sessions.
        execute: carries out a command.
        now_ns: the exchange's time.
    """

    def __init__(
        self,
        offerings: Offerings,
        *,
        recording: Recording,
        chains: OptionChains,
        tables: MarketTables,
        calendar: SessionCalendar,
        sockets: DataSockets,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        now_ns: Callable[[], int],
    ) -> None:
        self._market = OptionMarket(chains, tables=tables, calendar=calendar, length_ns=recording.length_ns)
        self._news = offerings.news
        self._sockets = sockets
        self._told_ns = now_ns()
        sockets.offer_options(self._market)
        self.options = OptionApi(self._market, credentials=credentials, execute=execute, now_ns=now_ns)
        self._parts = (
            NewsApi(offerings.news, credentials=credentials, now_ns=now_ns, open_session=sockets.handle),
            ScreenerApi(tables, symbols=recording.symbols, credentials=credentials, now_ns=now_ns),
            CorporateActionsApi(offerings.actions, credentials=credentials, now_ns=now_ns),
        )

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve all of it."""
        self.options.add_trading_routes(router)
        self.options.add_data_routes(router)
        for part in self._parts:
            part.add_routes(router)

    def publish(self, end_ns: int) -> None:
        """Send the news of a slice that ended to the sessions that want them."""
        if self._sockets.wants_news():
            self._sockets.publish_news(
                [article.encode_item() for article in self._news.between(self._told_ns + 1, end_ns)]
            )
        self._told_ns = end_ns

    def skip(self, time_ns: int) -> None:
        """Tell no news from before a time."""
        self._told_ns = time_ns
