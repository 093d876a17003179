"""Write `exchange.md` beside this file from the routes of the exchange: `python docs/reference/write_exchange.py`.

A route without a note here, and a note without a route, is an error: what is new has to be described.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

PAGE = Path(__file__).with_name("exchange.md")
OWN = "/dry-work/"

HEAD = """\
# What the simulated exchange has of Alpaca's API

Written by `python docs/reference/write_exchange.py` from the routes of the exchange; a test compares the two, and
another one calls every route of the trading and market-data APIs with unmodified alpaca-py. How to use it stands in
[Trade on the simulated exchange](../howto/exchange.md).
"""

TAIL = """\
## Everywhere

- Every HTTP answer has `X-Request-ID` and, but for the control API, `X-RateLimit-Limit`, `-Remaining` and `-Reset`;
  `--requests-per-minute` makes the budget count.
- Errors are `{"code", "message", ...}` with Alpaca's codes, of market data `{"message"}`.
- Time is the recording's: no answer holds anything that has not happened by then.

## Options

Every stock of the recording whose symbol has letters alone (BRK.B has the root BRKB) has a chain of synthetic options
under `--rules alpaca`: strikes at even steps from about 70 % to 130 % of its first price; expirations on the first
day, weekly until five weeks after the recording's end, monthly until three months after it. Nobody paid their prices:
they are Black-Scholes prices of the stock's bars with one volatility a stock and a rate of 4 %, in whole cents. An
option has a bar in every minute of the regular session in which its stock has one, and a quote around the last price,
one per cent to each side. OCC symbols in a recording trade at their own bars. `--no-options` leaves the recorded ones
alone.

The trades of a bar are at its open, its extremes and its close, as far as these differ; together they have its volume,
so that bars made of them are the exchange's own. They come with the slice, before its watermark. A consumer may ask for
any contract with bars: in lock-step the market then waits until its trades and watermarks are subscribed. Under
`--rules backtrader` the contracts of the recording trade as Backtrader's broker would trade them, at 100 shares each.

- Orders: market (in the session only) and limit, day, whole contracts, simple, no extended hours, no notional. They
  fill at the option's bars as stock orders do. A contract is 100 shares in money, buying power and positions.
- Bought options are paid in cash. A call is sold to open against 100 shares each, which it holds; a put against its
  strike in cash. `max_options_trading_level` of the account's configuration lowers the level from 3 (2 buys, 1 writes
  covered, 0 nothing).
- Exercise takes effect at once, for all contracts that no order is about to sell. At the close of its last session
  what is in the money by a cent is exercised or assigned (activities OPEXC, OPASN and OPTRD); where the money or the
  shares are missing it is settled in cash (OPCSH), as Alpaca sells such positions before the close. The rest expires
  (OPEXP).
- Orders of several legs (mleg) are refused: 422, 42210000.

## Assets

`--assets FILE` says of assets what differs from the default, in the form of `GET /v2/assets`:

| field | what the exchange does |
| --- | --- |
| `status` inactive, `tradable` false | refuses orders: `asset "X" is not active`, `... is not tradable` |
| `fractionable` false | refuses fractions and notional orders |
| `shortable` false | refuses to sell short |
| `easy_to_borrow` false | takes day orders alone to sell short; borrowing costs nothing |
| `overnight_tradable` in `attributes` | extended hours go on from 20:00 to 04:00 |

## Not there

Orders of several legs; borrow fees; dividends, splits and other corporate actions on positions (they are told);
halts; pattern day trading, which Alpaca retired in July 2026; stock auctions; order books deeper than the best price.
"""

SECTIONS: dict[str, tuple[str, ...]] = {
    "Trading": ("/v2/account", "/v2/clock", "/v2/calendar", "/v2/assets", "/v2/orders", "/v2/positions",
                "/v2/watchlists", "/v2/options", "/v2/corporate_actions"),
    "Market data": ("/v2/stocks", "/v1beta3/crypto/{", "/v1beta1/options", "/v1beta1/news", "/v1/corporate-actions",
                    "/v1beta1/screener"),
    "Streams": ("/stream", "/v2/iex", "/v2/sip", "/v2/delayed_sip", "/v2/test", "/v1beta3/crypto", "/v1beta1"),
    "Broker API": ("/v1/", "/v2/events"),
}  # fmt: skip

# Notes by the beginning of "METHOD PATH" or of a path; the longest one that fits is the route's.
NOTES: dict[str, str] = {
    "/v2/account": "buying power of a margin account from 2,000 dollars on; `last_equity` is the present equity",
    "/v2/account/configurations": "all in effect but `trade_confirm_email` and `ptp_no_exception_entry`",
    "/v2/account/portfolio/history": "period, timeframe, start, end, date_end, intraday_reporting (continuous), "
    "pnl_reset (no_reset); `cashflow` is empty",
    "/v2/account/activities": "FILL, CFEE, FEE, OPEXC, OPASN, OPEXP, OPCSH, OPTRD; paged by the last id",
    "/v2/clock": "the exchange's time, in New York",
    "/v2/calendar": "2000 to 2035, with `settlement_date`; `date_type` TRADING or SETTLEMENT",
    "/v2/assets": "status, asset_class, exchange, attributes; options are found by symbol, not listed",
    "/v2/orders": "every type, time in force and class but mleg",
    "GET /v2/orders": "status, limit, after, until, direction, nested, side, symbols, asset_class, order ids as bounds",
    "PATCH /v2/orders": "a new order; not of notional orders, nor the quantity of legs",
    "DELETE /v2/orders": "204 of one, 207 of all",
    "/v2/positions": "crypto without its slash; 404 for the form with one",
    "/v2/positions/{symbol}/exercise": "at once",
    "/v2/watchlists": "whole",
    "/v2/options/contracts": "all filters, pages; no open interest",
    "/v2/corporate_actions/announcements": "of `--corporate-actions`; up to 90 days",
    "/v2/stocks": "bars of any timeframe, trades, quotes; feed, currency, asof and adjustment change nothing",
    "/v2/stocks/{kind}/latest": "made of the last bar where no ticks are recorded",
    "/v2/stocks/{symbol}/{kind}/latest": "made of the last bar where no ticks are recorded",
    "/v2/stocks/snapshots": "unknown symbols are null",
    "/v2/stocks/{symbol}/snapshot": "404 for unknown symbols",
    "/v1beta3/crypto/{": "without credentials, as at Alpaca",
    "/v1beta3/crypto/{venue}/latest": "order books of one price a side",
    "/v1beta1/options": "up to 100 symbols; synthetic or recorded",
    "/v1beta1/options/snapshots": "with implied volatility and greeks; pages, updated_since",
    "/v1beta1/options/meta": "fixed tables",
    "/v1beta1/news": "of `--news`; sort, symbols, include_content, exclude_contentless, pages of up to 50; "
    "over WebSocket articles come when the minute of their update ends",
    "/v1/corporate-actions": "of `--corporate-actions`; symbols, cusips, types, start, end, ids, sort, pages of 1,000",
    "/v1beta1/screener": "of the day so far; movers against the day before, on the first day against its open",
    "/stream": "trade_updates as JSON in binary frames, both forms of authentication",
    "/v2/iex": "MessagePack or JSON; trades, quotes, bars, updatedBars, dailyBars; statuses and lulds are silent",
    "/v2/sip": "as `/v2/iex`",
    "/v2/delayed_sip": "as `/v2/iex`, without the delay",
    "/v2/test": "as `/v2/iex`, with the recording's symbols",
    "/v1beta3/crypto": "trades, quotes, bars, updatedBars, dailyBars; orderbooks are silent",
    "/v1beta1/indicative": "MessagePack; trades, quotes by name; `*` on trades is the ten contracts around each price",
    "/v1beta1/opra": "as `/v1beta1/indicative`",
    "/v1/": "as the trading API, for a sub-account",
    "/v1/accounts": "sub-accounts of a Broker API key",
    "/v1/events": "server-sent events",
    "/v2/events": "server-sent events with ULIDs",
}


def find_routes() -> list[tuple[str, str]]:
    """Return method and path of every route of Alpaca's that the exchange has, by path."""
    router = web.UrlDispatcher()
    ExchangeServer(synthetic_day(["SPY"], minutes=1), rules="alpaca").add_routes(router)
    return sorted(
        {
            (route.method, route.resource.canonical)
            for route in router.routes()
            if route.resource is not None and route.method != "HEAD" and not route.resource.canonical.startswith(OWN)
        },
        key=lambda route: (route[1], route[0]),
    )


def find_note(method: str, path: str) -> str:
    """Return what is said about a route."""
    fitting = [key for key in NOTES if f"{method} {path}".startswith(key) or path.startswith(key)]
    if not fitting:
        raise SystemExit(f"{method} {path} has no note in {Path(__file__).name}")
    return NOTES[max(fitting, key=lambda key: (len(key.partition(" ")[2] or key), " " in key))]


def find_section(path: str) -> str:
    """Return the part of the page that a route is in."""
    for section, beginnings in SECTIONS.items():
        if path.startswith(beginnings) and (section != "Broker API" or path != "/v1/corporate-actions"):
            return section
    raise SystemExit(f"{path} is in no section of {Path(__file__).name}")


def build_page() -> str:
    """Return the page."""
    parts = [HEAD]
    routes = find_routes()
    for section in SECTIONS:
        parts.append(f"## {section}\n\n| endpoint | notes |\n| --- | --- |")
        parts += [
            f"| `{method} {path}` | {find_note(method, path)} |"
            for method, path in routes
            if find_section(path) == section
        ]
        parts.append("")
    return "\n".join([*parts, TAIL])


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
