from __future__ import annotations

import itertools
from decimal import Decimal
from pathlib import Path

import pytest

from dry_work import settings as s
from dry_work.errors import ConfigError
from dry_work.orders.risk_limits import RiskLimits


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m", 60), ("30s", 30), ("5m", 300), ("1H", 3600), ("2d", 172_800), (" 1w ", 604_800)]
)
def test_time_frames(text: str, seconds: int) -> None:
    assert s.parse_timeframe(text).length_ns == seconds * 1_000_000_000


@pytest.mark.parametrize("text", ["", "m", "0m", "5", "5y", "-1m", "1.5h"])
def test_a_bad_time_frame_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number and a unit"):
        s.parse_timeframe(text, option="--resample")


def test_speed_is_a_number_or_max() -> None:
    assert s.parse_speed("max") is None
    assert s.parse_speed("60") == 60.0
    for text in ("0", "-1", "fast", "inf", "nan"):
        with pytest.raises(ConfigError, match="--speed"):
            s.parse_speed(text)


def test_cash_is_an_amount_above_zero() -> None:
    assert s.parse_cash("1000.50") == Decimal("1000.50")
    for text in ("0", "-5", "much", "NaN", "Infinity"):
        with pytest.raises(ConfigError, match="--cash"):
            s.parse_cash(text)


def test_a_zone_has_to_exist() -> None:
    assert s.parse_zone("America/New_York") == "America/New_York"
    with pytest.raises(ConfigError, match="no such time zone"):
        s.parse_zone("Mars/Base")


@pytest.mark.parametrize("text", ["", "a/b", "-a", "a" * 64, "a b", "ä"])
def test_a_bad_agent_id_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="AGENT_ID"):
        s.parse_agent_id(text)


@pytest.mark.parametrize(
    "environment",
    [
        {"ALPACA_API_KEY": "k", "ALPACA_SECRET_KEY": "s"},
        {"ALPACA_API_KEY": "k", "ALPACA_API_SECRET": "s"},
        {"PAPER_ALPACA_API_KEY_ID": "k", "PAPER_ALPACA_API_SECRET_KEY": "s"},
        {"ALPACA_API_KEY": "k", "ALPACA_SECRET_KEY": "s", "ALPACA_API_SECRET": "s"},
    ],
)
def test_any_accepted_pair_gives_the_credentials(environment: dict[str, str]) -> None:
    assert s.read_credentials(environment) == s.Credentials(key="k", secret="s")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "set ALPACA_API_KEY and ALPACA_SECRET_KEY, or try --local"),
        ({"ALPACA_API_KEY": "k1"}, "ALPACA_API_KEY is set, but ALPACA_SECRET_KEY is not"),
        ({"ALPACA_SECRET_KEY": "s1"}, "ALPACA_SECRET_KEY is set, but ALPACA_API_KEY is not"),
        ({"ALPACA_API_KEY": "  ", "ALPACA_SECRET_KEY": ""}, "no Alpaca credentials"),
        (
            {"ALPACA_API_KEY": "k1", "ALPACA_SECRET_KEY": "s1", "ALPACA_API_SECRET": "s2"},
            "ALPACA_SECRET_KEY and ALPACA_API_SECRET are both set and differ",
        ),
        (
            {
                "ALPACA_API_KEY": "k1",
                "ALPACA_SECRET_KEY": "s1",
                "PAPER_ALPACA_API_KEY_ID": "k2",
                "PAPER_ALPACA_API_SECRET_KEY": "s1",
            },
            "ALPACA_API_KEY and PAPER_ALPACA_API_KEY_ID are both set and differ",
        ),
    ],
)
def test_missing_half_set_or_differing_credentials_name_the_variables_only(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        s.read_credentials(environment, hint=", or try --local")
    assert message in str(caught.value)
    for value in environment.values():
        assert not value.strip() or value not in str(caught.value)


def test_credentials_are_not_shown() -> None:
    shown = repr(s.Credentials(key="PKVERYSECRET", secret="topsecret"))
    assert "SECRET" not in shown
    assert "topsecret" not in shown


def test_env_files_are_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / ".env").write_text("A=1\nB=1\nC=1\n")
    (tmp_path / ".env").write_text("# comment\n\nexport B='2'\nC=2\n")
    found = s.read_environment(tmp_path, {"C": "3", "D": ""})
    assert found == {"A": "1", "B": "2", "C": "3"}


def test_a_bad_env_line_is_named_without_its_content() -> None:
    with pytest.raises(ConfigError) as caught:
        s.parse_env_file("A=1\nsecret stuff\n")
    assert str(caught.value) == ".env, line 2: expected NAME=value"


def test_unknown_names_in_the_toml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dry-work.toml"
    path.write_text('[run]\nagent = "a.py:A"\nsped = "max"\n')
    with pytest.raises(ConfigError, match=r"no setting 'sped'; its settings: agent, "):
        s.read_toml(path)
    path.write_text("[run\n")
    with pytest.raises(ConfigError, match="no TOML"):
        s.read_toml(path)
    assert s.read_toml(tmp_path / "nothing.toml") == {}


@pytest.mark.parametrize(
    ("key", "url", "live", "message"),
    [
        ("PK1", s.LIVE_URL, True, "is a paper key"),
        ("AK1", s.PAPER_URL, True, "ALPACA_URL is the paper address"),
        ("PK1", s.LIVE_URL, False, "ALPACA_URL is the live address, but --live is not given"),
        ("AK1", s.PAPER_URL, False, "is a live key"),
    ],
)
def test_live_needs_the_flag_a_live_key_and_a_live_address(key: str, url: str, live: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        s.check_live(s.Credentials(key=key, secret="s"), url, live=live)


@pytest.mark.parametrize(
    ("url", "live", "account_id", "message"),
    [
        (s.BROKER_LIVE_URL, False, "x", "the live address, but --live is not given; Dry Work trades in the sandbox"),
        (s.BROKER_SANDBOX_URL, True, "x", "ALPACA_URL is the sandbox address"),
        (s.PAPER_URL, False, "x", "unset ALPACA_ACCOUNT_ID to trade with the key's own account"),
        (s.LIVE_URL, True, "x", "unset ALPACA_ACCOUNT_ID to trade with the key's own account"),
        (s.BROKER_SANDBOX_URL, False, "", "the Broker API, which needs an account: set ALPACA_ACCOUNT_ID"),
        (s.BROKER_LIVE_URL, True, "", "the Broker API, which needs an account: set ALPACA_ACCOUNT_ID"),
    ],
)
def test_the_address_is_that_of_the_accounts_api(url: str, live: bool, account_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        s.check_live(s.Credentials(key="CK1", secret="s"), url, live=live, account_id=account_id)


def test_an_account_of_the_broker_api_has_addresses_of_its_own() -> None:
    account_id = s.parse_account_id(" 0F0EE2AB-bd0d-4b7e-8bb7-0f5e4ae4c4a8 ")
    assert account_id == "0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8"
    assert s.parse_account_id("") == ""
    for live, url, data_url in (
        (False, s.BROKER_SANDBOX_URL, s.DATA_SANDBOX_URL),
        (True, s.BROKER_LIVE_URL, s.DATA_URL),
    ):
        assert s.choose_venue_urls(account_id, live=live) == (url, data_url)
        s.check_live(s.Credentials(key="CK1", secret="s"), url, live=live, account_id=account_id)
    s.check_live(s.Credentials(key="X", secret="s"), "http://127.0.0.1:1", live=False, account_id=account_id)
    assert s.choose_venue_urls("", live=True) == (s.LIVE_URL, s.DATA_URL)


@pytest.mark.parametrize("text", ["x", "PA1234567", "0f0ee2ab-bd0d-4b7e-8bb7"])
def test_what_is_no_account_id_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=f"ALPACA_ACCOUNT_ID '{text}': expected .* a UUID. Unset it"):
        s.parse_account_id(text)


def is_taken(key: str, url: str, *, live: bool) -> bool:
    try:
        s.check_live(s.Credentials(key=key, secret="s"), url, live=live)
    except ConfigError:
        return False
    return True


def test_matching_key_and_address_are_taken() -> None:
    keys, local = ("AK1", "PK1", "LOCAL"), "http://127.0.0.1:8090"
    given = list(itertools.product(keys, (s.LIVE_URL, s.PAPER_URL, local)))
    assert [pair for pair in given if is_taken(*pair, live=True)] == [
        ("AK1", s.LIVE_URL), ("AK1", local), ("LOCAL", s.LIVE_URL), ("LOCAL", local),
    ]  # fmt: skip
    assert [pair for pair in given if is_taken(*pair, live=False)] == [
        ("PK1", s.PAPER_URL), ("PK1", local), ("LOCAL", s.PAPER_URL), ("LOCAL", local),
    ]  # fmt: skip


def test_the_pod_directory_is_the_default_only_with_an_agent_id(tmp_path: Path) -> None:
    assert s.choose_state_dir(None, agent_id="a", pod_dir=tmp_path) == (tmp_path, True)
    assert s.choose_state_dir(None, agent_id="", pod_dir=tmp_path) == (s.DEFAULT_STATE_DIR, False)
    assert s.choose_state_dir("x", agent_id="a", pod_dir=tmp_path) == (Path("x"), True)
    assert s.choose_state_dir(None, agent_id="a", pod_dir=tmp_path / "none") == (s.DEFAULT_STATE_DIR, False)


@pytest.mark.parametrize("text", ["", "ftp://host", "http://", "http://host:99999", "nonsense"])
def test_a_bad_url_names_its_variable(text: str) -> None:
    with pytest.raises(ConfigError, match="ALPACA_URL"):
        s.parse_url(text, name="ALPACA_URL")


def test_a_url_loses_its_slash_and_may_not_carry_credentials() -> None:
    assert s.parse_url("http://h:1/", name="X") == "http://h:1"
    with pytest.raises(ConfigError) as caught:
        s.parse_url("http://key:hidden@h", name="X")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-02", 1_704_153_600),
        ("2024-01-02T14:30", 1_704_205_800),
        ("2024-01-02 14:30:00Z", 1_704_205_800),
        ("2024-01-02T09:30:00-05:00", 1_704_205_800),
    ],
)
def test_a_moment_is_utc_unless_it_says_otherwise(text: str, expected: int) -> None:
    assert s.parse_moment(text, name="--start") == expected * 10**9


def test_a_date_may_mean_its_end() -> None:
    assert s.parse_moment("2024-01-02", name="--end", whole_day=True) == 1_704_240_000 * 10**9
    assert s.parse_moment("2024-01-02T14:30", name="--end", whole_day=True) == 1_704_205_800 * 10**9


@pytest.mark.parametrize("text", ["", "tomorrow", "2024-13-01", "1969-01-01", "2262-01-01", "2024-01-02T25:00"])
def test_anything_else_is_no_moment(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--start .*: expected a date or a time such as"):
        s.parse_moment(text, name="--start")


# Risk


def test_limits_of_losses_are_off_in_local_runs_unless_they_are_set() -> None:
    assert s.parse_risk({}, local=False) == RiskLimits()
    local = s.parse_risk({}, local=True)
    assert local is not None
    assert (local.day_loss, local.drawdown) == (None, None)
    assert local.order_value == RiskLimits().order_value
    chosen = s.parse_risk({"day_loss": "5%"}, local=True)
    assert chosen is not None
    assert str(chosen.day_loss) == "5 %"


def test_the_gate_may_be_off_with_local_only() -> None:
    assert s.parse_risk({"off": True}, local=True) is None
    with pytest.raises(ConfigError, match=r"\[risk\] off = true goes with --local only"):
        s.parse_risk({"off": True}, local=False)
    with pytest.raises(ConfigError, match=r"\[risk\] off = 'yes': expected true or false"):
        s.parse_risk({"off": "yes"}, local=True)


def test_a_limit_that_cannot_be_read_is_named_with_its_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[risk\] order_value = 'much': expected an amount"):
        s.parse_risk({"order_value": "much"}, local=False)
    path = tmp_path / "dry-work.toml"
    path.write_text("[risk]\nday_los = 5\n")
    with pytest.raises(ConfigError, match=r"\[risk\] has no setting 'day_los'; its settings: .*day_loss"):
        s.read_toml(path, "risk")


def test_how_long_the_journal_keeps_an_order() -> None:
    assert (s.parse_journal_days("30"), s.parse_journal_days("off")) == (30, None)
    for text in ("0", "-1", "1.5", "soon", "", "99999"):
        with pytest.raises(ConfigError, match=r"DRY_WORK_JOURNAL_DAYS.*expected whole days from 1 to 36500, or off"):
            s.parse_journal_days(text)
