"""The Broker API on a running exchange: sub-accounts, and trading on their behalf."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from dry_work.exchange.broker_api import find_broker_path
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.state_log import LOG_NAME
from dry_work.exchange.sub_accounts import SubAccounts, build_sub_account_ids, owner_of

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]

BASIC = {"Authorization": "Basic " + b64encode(b"key:secret").decode()}
FIRST, SECOND = build_sub_account_ids("key", 2)
NOBODY = "00000000-0000-0000-0000-000000000001"
UNAUTHORIZED = (401, {"code": 40110000, "message": "request is not authorized"})


@pytest.fixture
def serve(run_exchange: Run, connect: Connect) -> Callable[..., Any]:
    """Run an exchange with two sub-accounts a key; return a client of it that uses HTTP Basic."""

    def run(**options: Any) -> Any:
        client = connect(run_exchange(**{"rules": "alpaca", "accounts": 2, **options}))
        client.headers = BASIC
        return client

    return run


async def trade(client: Any, method: str, path: str, body: object = None, account_id: str = FIRST) -> tuple[int, Any]:
    answer: tuple[int, Any] = await client.call(method, f"/v1/trading/accounts/{account_id}{path}", body)
    return answer


def build_order(**fields: object) -> dict[str, object]:
    order = {"symbol": "SPY", "side": "buy", "type": "market", "time_in_force": "gtc", "qty": "1"}
    return {**order, **fields}


async def play(client: Any, *submits: tuple[str, dict[str, object]]) -> list[dict[str, Any]]:
    """Place orders of accounts in the first minute, and let the second one fill them."""
    client_headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
    client.headers = client_headers
    await client.register()
    orders = []
    async with client.reader() as reader:
        await reader.receive_slice()
        client.headers = BASIC
        for account_id, order in submits:
            status, answer = await trade(client, "POST", "/orders", order, account_id)
            assert status == 200, answer
            orders.append(answer)
        assert (await client.report(1, orders=len(submits)))[0] == 200
        await reader.receive_slice()
    return orders


@pytest.mark.parametrize(
    ("trading", "broker"),
    [
        ("/v2/account", "/v1/trading/accounts/{account_id}/account"),
        ("/v2/orders:by_client_order_id", "/v1/trading/accounts/{account_id}/orders:by_client_order_id"),
        ("/v2/positions/{symbol}", "/v1/trading/accounts/{account_id}/positions/{symbol}"),
        ("/v2/assets/{symbol:.+}", "/v1/assets/{symbol:.+}"),
        ("/v2/clock", "/v1/clock"),
        ("/v2/positions/{symbol}/exercise", "/v1/trading/accounts/{account_id}/positions/{symbol}/exercise"),
        ("/v2/options/contracts", "/v1/options/contracts"),
        ("/v2/corporate_actions/announcements", "/v1/corporate_actions/announcements"),
        ("/v1/corporate-actions", None),
        ("/v2/account/activities", None),
        ("/v2/account/activities/{kind}", None),
        ("/v2/stocks/bars", None),
        ("/dry-work/v1/faults", None),
    ],
)
def test_trading_paths_have_their_places_in_the_broker_api(trading: str, broker: str | None) -> None:
    assert find_broker_path(trading) == broker


def test_sub_accounts_are_opened_at_first_use_and_known_after_a_restart() -> None:
    opened: list[tuple[str, dict[str, object]]] = []
    accounts = SubAccounts(2, open_account=lambda name, details: opened.append((name, details)))
    assert accounts.names("key") == accounts.names("key") == ["key:1", "key:2"]
    assert accounts.open("key", {"contact": {}}) == "key:3"
    assert opened == [("key:1", {}), ("key:2", {}), ("key:3", {"contact": {}})]
    assert accounts.find("key", FIRST.upper()) == "key:1"
    assert accounts.find("other", FIRST) is None
    again = SubAccounts(1, open_account=lambda name, _: opened.append((name, {})))
    again.restore(["key", "key:1", "other", "key:2"])
    assert again.names("key") == ["key:1", "key:2"]
    assert again.open("key", {}) == "key:3"
    assert (owner_of("key:3"), owner_of("key")) == ("key", "key")


async def test_a_key_begins_with_accounts_that_are_the_same_in_every_run(serve: Callable[..., Any]) -> None:
    client = serve(cash=Decimal(5000))
    status, rows = await client.call("GET", "/v1/accounts?sort=asc")
    assert (status, [row["id"] for row in rows]) == (200, [FIRST, SECOND])
    assert all(str(UUID(row["id"])) == row["id"] for row in rows)
    assert [(row["status"], row["currency"], row["last_equity"]) for row in rows] == [("ACTIVE", "USD", "5000")] * 2
    assert [row["id"] for row in (await client.call("GET", "/v1/accounts"))[1]] == [SECOND, FIRST]
    assert await client.call("GET", f"/v1/accounts/{FIRST}?params=") == (200, rows[0])


async def test_accounts_are_found_by_their_facts(serve: Callable[..., Any]) -> None:
    client = serve(accounts=1)
    told = {"contact": {"email_address": "Ada@lovelace.invalid"}, "identity": {"tax_id": "123", "given_name": "Ada"}}
    _, made = await client.call("POST", "/v1/accounts", told)
    assert made["identity"] == {"given_name": "Ada"}  # a tax id is not kept
    for query, count in (
        ("query=ada%40lovelace", 1), ("query=nobody", 0), ("status=active", 2), ("status=ACCOUNT_CLOSED", 0),
        ("created_after=2024-06-10", 2), ("created_after=2024-06-12", 0), ("created_before=2024-06-11", 0),
    ):  # fmt: skip
        assert len((await client.call("GET", f"/v1/accounts?{query}"))[1]) == count, query
    rows = (await client.call("GET", "/v1/accounts?entities=contact"))[1]
    assert ["contact" in row for row in rows] == [True, False]
    assert not any("identity" in row for row in rows)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"currency": "EUR"}, "currency EUR is not supported: expected USD"),
        ({"contact": "me"}, "contact must be an object"),
        ({"agreements": {}}, "agreements must be a list"),
    ],
)
async def test_an_account_that_cannot_be_is_not_opened(
    serve: Callable[..., Any], body: dict[str, object], message: str
) -> None:
    client = serve()
    assert await client.call("POST", "/v1/accounts", body) == (422, {"code": 40010001, "message": message})
    assert (await client.call("POST", "/v1/accounts", data=b"{"))[0] == 400
    assert (await client.call("POST", "/v1/accounts", data=b"[]"))[0] == 400
    assert len((await client.call("GET", "/v1/accounts"))[1]) == 2


@pytest.mark.parametrize(
    "path", ["/v1/accounts/{}", "/v1/trading/accounts/{}/account", "/v1/trading/accounts/{}/orders"]
)
async def test_a_missing_account_answers_401(serve: Callable[..., Any], path: str) -> None:
    client = serve()
    (foreign,) = build_sub_account_ids("other", 1)
    other = {"Authorization": "Basic " + b64encode(b"other:secret").decode()}
    assert (await client.call("GET", path.format(foreign), headers=other))[0] == 200
    for account_id in (NOBODY, foreign, "nonsense"):
        assert await client.call("GET", path.format(account_id)) == UNAUTHORIZED
    assert await client.call("GET", path.format(FIRST), headers={}) == UNAUTHORIZED


async def test_the_name_of_a_sub_account_is_no_key(serve: Callable[..., Any]) -> None:
    client = serve()
    await client.call("GET", "/v1/accounts")
    headers = {"APCA-API-KEY-ID": "key:1", "APCA-API-SECRET-KEY": "secret"}
    assert await client.call("GET", "/v2/account", headers=headers) == UNAUTHORIZED


async def test_the_trading_account_has_all_keys(serve: Callable[..., Any]) -> None:
    _, account = await trade(serve(), "GET", "/account")
    assert (account["id"], account["cash"], account["cash_withdrawable"]) == (FIRST, "100000", "100000")
    assert account["previous_close"] == "2024-06-10T20:00:00Z"
    assert {name for name, value in account.items() if value is None} == {
        "last_long_market_value", "last_short_market_value", "last_cash", "last_initial_margin",
        "last_regt_buying_power", "last_buying_power", "clearing_broker",
    }  # fmt: skip


async def test_accounts_of_a_key_do_not_share_anything(serve: Callable[..., Any]) -> None:
    client = serve()
    await play(client, (FIRST, build_order(client_order_id="same")), (SECOND, build_order(client_order_id="same")))
    await trade(client, "POST", "/orders", build_order(type="limit", limit_price="1"))
    await trade(client, "PATCH", "/account/configurations", {"no_shorting": True})
    await trade(client, "POST", "/watchlists", {"name": "one", "symbols": ["SPY"]})
    for account_id, count in ((FIRST, 1), (SECOND, 0)):
        assert len((await trade(client, "GET", "/orders", account_id=account_id))[1]) == count
        assert (await trade(client, "GET", "/account/configurations", None, account_id))[1]["no_shorting"] is bool(
            count
        )
        assert len((await trade(client, "GET", "/watchlists", None, account_id))[1]) == count
        assert [row["qty"] for row in (await trade(client, "GET", "/positions", None, account_id))[1]] == ["1"]
    status, told = await client.call("GET", "/v1/accounts/positions")
    assert (status, told["as_of"]) == (200, "2024-06-11T13:32:00Z")
    assert {name: [row["symbol"] for row in rows] for name, rows in told["positions"].items()} == {
        FIRST: ["SPY"], SECOND: ["SPY"],
    }  # fmt: skip
    assert await client.call("GET", "/v2/positions") == (200, [])  # the key's own account


async def test_activities_of_all_accounts_are_paged(serve: Callable[..., Any]) -> None:
    client = serve()
    await play(client, (FIRST, build_order()), (SECOND, build_order(qty="2")), (FIRST, build_order(qty="3")))
    path = "/v1/accounts/activities"
    _, rows = await client.call("GET", path)
    assert [(row["account_id"], row["qty"]) for row in rows] == [(SECOND, "2"), (FIRST, "3"), (FIRST, "1")]
    assert (await client.call("GET", f"{path}?direction=asc"))[1] == rows[::-1]
    assert (await client.call("GET", f"{path}/FILL"))[1] == rows
    assert (await client.call("GET", f"{path}?account_id={FIRST}"))[1] == rows[1:]
    assert (await client.call("GET", f"{path}?account_id={NOBODY}"))[1] == []
    assert (await client.call("GET", f"{path}?activity_types=CFEE,FEE"))[1] == []
    pages: list[list[dict[str, Any]]] = []
    token = ""
    while not pages or pages[-1]:
        pages.append((await client.call("GET", f"{path}?page_size=2{token}"))[1])
        token = f"&page_token={pages[-1][-1]['id']}" if pages[-1] else ""
    assert pages == [rows[:2], rows[2:], []]
    assert (await client.call("GET", f"/v1/trading/accounts/{FIRST}/account/activities"))[0] == 404


@pytest.mark.parametrize("rules", ["alpaca", "backtrader"])
async def test_a_commission_is_charged_once_with_the_first_fill(serve: Callable[..., Any], rules: str) -> None:
    client = serve(rules=rules)
    orders = await play(
        client, (FIRST, build_order(commission=1.5)), (SECOND, build_order(commission="0.25", currency="USD"))
    )
    assert [order["commission"] for order in orders] == ["1.5", "0.25"]
    cash = [(await trade(client, "GET", "/account", None, account_id))[1]["cash"] for account_id in (FIRST, SECOND)]
    assert cash == ["99897.5", "99898.75"]  # 101 dollars and the commission
    rows = (await client.call("GET", "/v1/accounts/activities?activity_types=FEE"))[1]
    assert sorted((row["net_amount"], row["description"]) for row in rows) == [
        ("-0.25", f"Commission of order {orders[1]['id']}"),
        ("-1.5", f"Commission of order {orders[0]['id']}"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"commission": -1}, "commission must be >= 0"),
        ({"commission": "x"}, "invalid commission x"),
        ({"currency": "EUR"}, "currency EUR is not supported: expected USD"),
    ],
)
async def test_a_commission_or_currency_that_cannot_be_is_refused(
    serve: Callable[..., Any], fields: dict[str, object], message: str
) -> None:
    status, body = await trade(serve(), "POST", "/orders", build_order(**fields))
    assert (status, body["message"]) == (422, message)


async def test_a_replacement_keeps_a_commission_that_was_not_charged(serve: Callable[..., Any]) -> None:
    client = serve()
    _, order = await trade(client, "POST", "/orders", build_order(type="limit", limit_price="1", commission=2))
    status, new = await trade(client, "PATCH", f"/orders/{order['id']}", {"limit_price": "2"})
    assert (status, new["commission"]) == (200, "2")


async def test_the_trading_api_knows_no_commission(serve: Callable[..., Any]) -> None:
    client = serve()
    _, order = await client.call("POST", "/v2/orders", build_order(commission=2))
    assert "commission" not in order


async def test_an_execution_of_a_sub_account_is_taken_back(serve: Callable[..., Any]) -> None:
    client = serve()
    await play(client, (FIRST, build_order()))
    (fill,) = (await client.call("GET", "/v1/accounts/activities"))[1]
    bust = {"account_id": FIRST, "execution_id": fill["id"].partition("::")[2]}
    assert (await client.call("POST", "/dry-work/v1/busts", {**bust, "account_id": NOBODY}))[0] == 404
    assert (await client.call("POST", "/dry-work/v1/busts", {**bust, "account_id": SECOND}))[0] == 404
    status, event = await client.call("POST", "/dry-work/v1/busts", bust)
    assert (status, event["event"], event["execution_id"]) == (200, "fill", bust["execution_id"])
    assert (await trade(client, "GET", "/positions"))[1] == []


async def test_accounts_survive_a_restart_with_more_or_fewer_to_begin_with(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    client = serve(state_dir=tmp_path, accounts=2)
    _, order = await trade(client, "POST", "/orders", build_order(commission=2, type="limit", limit_price="1"), SECOND)
    client.server.stop()
    assert b"tax_id" not in (tmp_path / LOG_NAME).read_bytes()
    for accounts, count in ((0, 2), (3, 3)):
        client = serve(state_dir=tmp_path, accounts=accounts)
        assert (await trade(client, "GET", f"/orders/{order['id']}", None, SECOND))[1]["commission"] == "2"
        rows = (await client.call("GET", "/v1/accounts?sort=asc"))[1]
        assert [row["id"] for row in rows] == build_sub_account_ids("key", count)
        client.server.stop()
