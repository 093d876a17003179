"""News, corporate actions, screens, lists of assets: what files say, what is made up, and what HTTP answers of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dry_work.errors import CodecError, ConfigError
from dry_work.exchange.assets import AssetBook, parse_assets
from dry_work.exchange.corporate_actions import TYPES, make_actions, parse_actions
from dry_work.exchange.news import make_news, parse_news
from dry_work.exchange.offerings import Offerings
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

from .conftest import Client

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Client]

ARTICLES = [
    {"id": 1, "headline": "one", "source": "x", "created_at": "2024-06-11T13:29:00Z",
     "symbols": ["SPY"], "content": "c"},
    {"id": 2, "headline": "two", "source": "x", "created_at": "2024-06-11T13:28:00Z",
     "updated_at": "2024-06-11T13:30:30Z", "symbols": ["SPY", "BTCUSD"], "content": ""},
    {"id": 3, "headline": "three", "source": "x", "created_at": "2024-06-11T13:33:00Z", "symbols": [], "author": "me"},
]  # fmt: skip


# News


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(ARTICLES),
        json.dumps({"news": ARTICLES, "next_page_token": None}),
        "\n".join(json.dumps(article) for article in ARTICLES),
    ],
)
def test_articles_are_read_in_every_form(data: str) -> None:
    feed = parse_news(data.encode())
    assert [article.id for article in feed.between(0, 2**62)] == [1, 2, 3]
    assert feed.between(0, 2**62)[2].author == "me"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("3", "news are a JSON list"),
        ("[3]", "article 1 is no JSON object"),
        ('[{"id": 1}]', "article 1 has no readable created_at"),
        ('[{"id": "x", "created_at": "2024-06-11"}]', "article 1: Expected `int`"),
        (json.dumps([ARTICLES[0], ARTICLES[0]]), "two articles have the same id"),
    ],
)
def test_news_that_cannot_be_used_are_named(data: str, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        parse_news(data.encode())


def test_made_up_news_say_so_and_are_the_same_every_time() -> None:
    bars = synthetic_day(["SPY", "BTC/USD"])
    found, again = (make_news(bars).between(0, 2**62) for _ in range(2))
    assert found == again
    assert len(found) == 4
    assert all(article.headline.startswith("SYNTHETIC: ") and article.source == "synthetic" for article in found)
    assert {symbol for article in found for symbol in article.symbols} == {"SPY", "BTCUSD"}


async def test_news_come_page_by_page_and_never_from_the_future(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(offerings=Offerings(news=parse_news(json.dumps(ARTICLES).encode()))))

    async def ask(query: str) -> tuple[list[int], Any]:
        _, body = await client.call("GET", f"/v1beta1/news?{query}")
        return [row["id"] for row in body["news"]], body["next_page_token"]

    assert await ask("") == ([1], None)
    await client.register()
    async with client.reader(), client.data("/v1beta3/crypto/us") as coins:
        await coins.authenticate("key")
        await coins.subscribe(["BTC/USD"])
        await client.wait_for(slice=1)
        assert await ask("") == ([2, 1], None)
        first, token = await ask("limit=1&sort=asc")
        assert (first, await ask(f"limit=1&sort=asc&page_token={token}")) == ([1], ([2], None))
        assert await ask("symbols=BTC/USD") == ([2], None)
        assert await ask("exclude_contentless=True") == ([1], None)
        assert await ask("start=2024-06-11T13:30:00Z&end=2024-06-12") == ([2], None)
    _, body = await client.call("GET", "/v1beta1/news?include_content=true&symbols=SPY&sort=asc")
    assert [row["content"] for row in body["news"]] == ["c", ""]
    for query in ("limit=51", "page_token=x", "sort=up", "start=x"):
        assert (await client.call("GET", f"/v1beta1/news?{query}"))[0] == 400
    assert (await client.call("GET", "/v1beta1/news", headers={}))[0] == 403


# Corporate actions

SPLIT = {"id": "0b3c6f4e-5f3f-4f6a-9f7e-1f8f6d1c2b3a", "symbol": "SPY", "cusip": "78462F103", "new_rate": 2.5,
         "old_rate": 1, "process_date": "2024-06-12", "ex_date": "2024-06-12"}  # fmt: skip


def test_actions_are_read_with_or_without_their_wrapper() -> None:
    plain = {"forward_splits": [SPLIT]}
    for body in (plain, {"corporate_actions": plain, "next_page_token": None}):
        (action,) = parse_actions(json.dumps(body).encode()).actions
        assert (action.id, action.first("symbol"), action.fields["new_rate"]) == (SPLIT["id"], "SPY", 2.5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "a JSON object of lists, by some of forward_splits"),
        ({"splits": []}, "by some of forward_splits"),
        ({"forward_splits": [1]}, "forward_splits, row 1 is no JSON object"),
        ({"forward_splits": [{**SPLIT, "process_date": "soon"}]}, "forward_splits, row 1: expected a process_date"),
        ({"forward_splits": [{**SPLIT, "id": "7"}]}, "and a UUID where it has an id"),
    ],
)
def test_actions_that_cannot_be_used_are_named(body: object, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        parse_actions(json.dumps(body).encode())


async def test_actions_are_filtered_and_paged(run_exchange: Run, connect: Connect) -> None:
    made = make_actions(synthetic_day(["AAPL", "SPY", "MSFT", "IBM", "BTC/USD"]))
    assert made.actions == make_actions(synthetic_day(["AAPL", "SPY", "MSFT", "IBM", "BTC/USD"])).actions
    client = connect(run_exchange(offerings=Offerings(actions=made)))

    async def ask(query: str) -> tuple[list[str], Any]:
        status, body = await client.call("GET", f"/v1/corporate-actions?{query}")
        assert status == 200
        rows = [row["symbol"] for kind in body["corporate_actions"].values() for row in kind]
        return rows, body["next_page_token"]

    assert await ask("") == ([], None)
    everything = "start=2024-06-11&end=2024-12-31&types=cash_dividend"
    rows, _ = await ask(everything)
    assert sorted(rows) == ["AAPL", "IBM", "MSFT", "SPY"]
    first, token = await ask(f"{everything}&limit=3")
    rest, end = await ask(f"{everything}&limit=3&page_token={token}")
    assert ([*first, *rest], end) == (rows, None)
    assert (await ask(f"{everything}&sort=desc"))[0] != rows
    assert (await ask(f"{everything}&symbols=SPY"))[0] == ["SPY"]
    spy = next(action for action in made.actions if action.first("symbol") == "SPY")
    assert (await ask(f"ids={spy.id}"))[0] == ["SPY"]
    assert (await ask(f"{everything}&cusips={spy.first('cusip')}"))[0] == ["SPY"]
    for query in ("types=party", f"ids={spy.id}&symbols=SPY", "start=x", "page_token=x", "limit=1001"):
        assert (await client.call("GET", f"/v1/corporate-actions?{query}"))[0] == 400
    announced = "/v2/corporate_actions/announcements"
    asked = f"{announced}?ca_types=dividend&since=2024-06-11&until=2024-08-31"
    _, rows = await client.call("GET", f"{asked}&symbol=SPY&date_type=payable_date")
    assert [(row["id"], row["ca_sub_type"], float(row["cash"])) for row in rows] == [
        (spy.id, "cash", spy.fields["rate"])
    ]
    assert (await client.call("GET", f"{announced}?ca_types=dividend&since=2024-01-01&until=2024-12-31"))[0] == 422
    assert (await client.call("GET", f"{announced}?ca_types=party&since=2024-06-01&until=2024-06-02"))[0] == 422
    assert (await client.call("GET", announced))[0] == 422
    assert (await client.call("GET", f"{announced}/{SPLIT['id']}"))[0] == 404
    assert len({word for word, _, _ in TYPES.values()}) == len(TYPES)


# Screens


async def test_screens_rank_the_day_so_far(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader(), client.data("/v1beta3/crypto/us") as coins:
        await coins.authenticate("key")
        await coins.subscribe(["BTC/USD"])
        await client.wait_for(slice=1)
        await client.report(1)
        await client.wait_for(slice=2)
    _, body = await client.call("GET", "/v1beta1/screener/stocks/most-actives?top=1")
    assert (len(body["most_actives"]), body["most_actives"][0]["volume"]) == (1, 20.0)
    _, body = await client.call("GET", "/v1beta1/screener/crypto/movers")
    assert [row["symbol"] for row in body["gainers"]] == ["BTC/USD"]
    assert (body["losers"], body["gainers"][0]["price"], body["gainers"][0]["change"]) == ([], 101.25, 1.25)
    assert (await client.call("GET", "/v1beta1/screener/stocks/most-actives?by=luck"))[0] == 400


# Assets


def test_a_list_of_assets_says_what_differs() -> None:
    book = parse_assets([{"symbol": "SPY", "shortable": False, "attributes": ["overnight_tradable"], "id": "x"}])
    traits = book.traits("SPY")
    assert (traits.shortable, traits.fractionable, traits.exchange) == (False, True, "NASDAQ")
    assert (book.is_overnight("SPY"), book.is_overnight("IBM")) == (True, False)
    assert book.traits("BTC/USD") == AssetBook().traits("BTC/USD")
    assert (bool(book.fingerprint), AssetBook().fingerprint) == (True, "")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "assets are a JSON list"),
        ([{"name": "x"}], "row 1 has no usable symbol"),
        ([{"symbol": "SPY"}, {"symbol": "SPY"}], "row 2: SPY stands in the list twice"),
        ([{"symbol": "SPY", "shortable": "no"}], "row 1, SPY: Expected `bool`"),
        ([{"symbol": "SPY", "status": "gone"}], "status is 'gone', expected active or inactive"),
        ([{"symbol": "SPY", "exchange": "MARS"}], "exchange is 'MARS', expected one of AMEX"),
    ],
)
def test_a_list_of_assets_that_cannot_be_used_is_named(body: object, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        parse_assets(body)


async def test_assets_are_listed_as_they_are(run_exchange: Run, connect: Connect) -> None:
    book = parse_assets(
        [
            {"symbol": "SPY", "exchange": "ARCA", "easy_to_borrow": False, "attributes": ["overnight_tradable"]},
            {"symbol": "IBM", "status": "inactive"},
        ]
    )
    client = connect(run_exchange(rules="alpaca", offerings=Offerings(assets=book)))

    async def ask(query: str) -> list[str]:
        return [row["symbol"] for row in (await client.call("GET", f"/v2/assets?{query}"))[1]]

    assert await ask("status=inactive") == ["IBM"]
    assert await ask("exchange=ARCA") == ["SPY"]
    assert await ask("attributes=overnight_tradable,ptp") == ["SPY"]
    _, spy = await client.call("GET", "/v2/assets/SPY")
    assert (spy["borrow_status"], spy["easy_to_borrow"]) == ("hard_to_borrow", False)
    assert spy["attributes"] == ["overnight_tradable", "has_options"]
    _, contract = await client.call("GET", "/v2/assets/SPY240611C00100000")
    assert (contract["class"], contract["exchange"], contract["shortable"]) == ("us_option", "", False)
    assert (await client.call("GET", f"/v2/assets/{contract['id']}"))[1] == contract


def test_a_rate_of_partial_fills_is_a_share_and_asks_for_the_rules_of_alpaca() -> None:
    with pytest.raises(ConfigError, match=r"a rate of partial fills of 1\.5"):
        Offerings(partial_fills=1.5)
    with pytest.raises(ConfigError, match="only the rule set alpaca fills some orders in part"):
        ExchangeServer(synthetic_day(["SPY"], minutes=2), rules="backtrader", offerings=Offerings(partial_fills=0.1))
