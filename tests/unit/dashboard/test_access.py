"""Who may read the dashboard and act on it."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from dry_work.dashboard.access import HEADER, Access, choose_token, is_loopback
from dry_work.dashboard.settings import parse_dashboard
from dry_work.errors import ConfigError

TOKEN = "0123456789abcdef"
GOOD = {"Host": "127.0.0.1:8070", HEADER: "1"}


def check(access: Access, method: str = "GET", path: str = "/api/about", **headers: str) -> int:
    """Return the status of a refusal, 0 for none."""
    given = {**GOOD, **{name.replace("_", "-"): value for name, value in headers.items()}}
    refusal = access.check(method, path, CIMultiDict({name: value for name, value in given.items() if value}))
    return refusal.status if refusal is not None else 0


@pytest.mark.parametrize("host", ["127.0.0.1:8070", "localhost:1", "[::1]:8070", "127.0.0.1"])
def test_this_machine_is_let_in_under_its_own_names(host: str) -> None:
    assert check(Access("127.0.0.1"), Host=host) == 0


@pytest.mark.parametrize("host", ["rebound.example:8070", "127.0.0.1.example", "", "[::1", "10.0.0.1:8070"])
def test_a_name_that_was_bound_to_this_machine_is_refused(host: str) -> None:
    assert check(Access("127.0.0.1"), Host=host) == 403
    assert check(Access("127.0.0.1"), path="/", Host=host) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {HEADER: ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_of_another_page_are_refused(headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        assert check(Access("127.0.0.1"), method, "/api/halt", **headers) == 403


def test_the_page_itself_asks_from_its_own_origin() -> None:
    assert (
        check(Access("127.0.0.1"), "POST", "/api/halt", Origin="http://127.0.0.1:8070", Sec_Fetch_Site="same-origin")
        == 0
    )


def test_beyond_this_machine_a_token_is_needed() -> None:
    with pytest.raises(ValueError, match="token"):
        Access("0.0.0.0")
    access = Access("0.0.0.0", TOKEN)
    assert check(access, Host="trader.lan:8070") == 401
    assert check(access, Host="trader.lan:8070", Authorization="Bearer 0123456789abcdeX") == 401
    assert check(access, Host="trader.lan:8070", Authorization="Bearer ä") == 401
    assert check(access, Host="trader.lan:8070", Authorization=f"Bearer {TOKEN}") == 0
    assert check(access, path="/", Host="trader.lan:8070") == 0  # the page asks for the token


def test_pages_are_only_read() -> None:
    assert check(Access("127.0.0.1"), "POST", "/") == 405


def test_a_token_is_made_where_one_is_needed() -> None:
    assert choose_token("127.0.0.1", "") == ""
    assert choose_token("localhost", TOKEN) == TOKEN
    made = choose_token("0.0.0.0", "")
    assert len(made) >= 32
    assert made != choose_token("0.0.0.0", "")
    for bad in ("short", "with space 0123456789"):
        with pytest.raises(ValueError, match="DRY_WORK_DASHBOARD_TOKEN"):
            choose_token("0.0.0.0", bad)


@pytest.mark.parametrize(("host", "expected"), [("::1", True), ("127.8.0.1", True), ("0.0.0.0", False), ("x", False)])
def test_the_loopback_interface_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 8070),
        ("9000", "127.0.0.1", 9000),
        ("localhost", "localhost", 8070),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:81", "::1", 81),
        ("::1", "::1", 8070),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    settings = parse_dashboard(text)
    assert (settings.host, settings.port) == (host, port)
    assert bool(settings.token) is (host == "0.0.0.0")
    assert settings.token == "" or settings.token not in repr(settings)


@pytest.mark.parametrize("text", ["a b:1", "host:x", "host:70000", "127.0.0.1:²"])
def test_an_address_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--dashboard .*expected HOST:PORT"):
        parse_dashboard(text)
