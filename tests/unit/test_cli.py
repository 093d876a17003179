from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dry_work.cli import COMMANDS, cli, main
from dry_work.cli.run import build_settings
from dry_work.cli.signals import StopWaiter
from dry_work.errors import ConfigError
from dry_work.settings import LIVE_URL, PAPER_URL

KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "hush", "GOOGLE_CLOUD_PROJECT": "proj"}


@pytest.fixture(autouse=True)
def in_a_folder_with_symbols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "symbols.txt").write_text("SPY\nbtc/usd\n")
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("ALPACA", "GOOGLE_CLOUD", "PUBSUB", "AGENT_ID", "PAPER_", "HUB_")):
            monkeypatch.delenv(name)
    return tmp_path


def build(
    options: Mapping[str, Any] | None = None,
    toml: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    return build_settings(options or {}, toml or {}, environment or {})


def test_every_command_has_help() -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ["--help"]).exit_code == 0
    for name in COMMANDS:
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert "Example" in result.output


def test_local_defaults() -> None:
    settings = build({"local": True})
    assert settings.mode == "local"
    assert settings.symbols == ("SPY", "BTC/USD")
    assert settings.speed is None
    assert settings.warmup == 0
    assert settings.cash == Decimal(100_000)
    assert settings.timeframe.text == "1m"


def test_paper_defaults_come_from_the_environment() -> None:
    settings = build(environment=KEYS)
    assert (settings.mode, settings.alpaca_url, settings.project) == ("paper", PAPER_URL, "proj")
    assert settings.warmup == 100
    assert (settings.market_topic, settings.crypto_topic) == ("market-data", "crypto-data")
    assert "hush" not in repr(settings)
    assert "PKTEST" not in repr(settings)


def test_beside_a_simulated_exchange_history_comes_from_it() -> None:
    settings = build(environment={**KEYS, "ALPACA_URL": "http://127.0.0.1:8090/", "PUBSUB_EMULATOR_HOST": "h:1"})
    assert settings.alpaca_url == settings.data_url == "http://127.0.0.1:8090"
    assert settings.pubsub_endpoint == "h:1"
    settings = build(
        environment={**KEYS, "ALPACA_URL": "http://127.0.0.1:8090", "ALPACA_DATA_URL": "http://127.0.0.1:9"}
    )
    assert settings.data_url == "http://127.0.0.1:9"


def test_the_history_is_of_the_hubs_stock_feed() -> None:
    paper = {**KEYS, "GOOGLE_CLOUD_PROJECT": "proj"}
    assert build(environment=paper).stock_feed == "iex"
    assert build(environment={**paper, "ALPACA_FEED": "SIP"}).stock_feed == "sip"
    assert build(environment={**paper, "STOCK_STREAM_FEED_TYPE": "delayed_sip"}).stock_feed == "delayed_sip"
    with pytest.raises(ConfigError, match=r"'gold' is not a stock feed \(ALPACA_FEED\): one of iex, sip"):
        build(environment={**paper, "ALPACA_FEED": "gold"})
    with pytest.raises(ConfigError, match=r"\(STOCK_STREAM_FEED\)"):
        build(environment={**paper, "STOCK_STREAM_FEED": "gold"})


def test_live_has_to_be_asked_for() -> None:
    settings = build({"live": True}, environment={**KEYS, "ALPACA_API_KEY": "AKREAL"})
    assert (settings.mode, settings.alpaca_url) == ("live", LIVE_URL)
    with pytest.raises(ConfigError, match="exclude each other"):
        build({"live": True, "local": True})


def test_an_option_wins_over_the_environment_and_that_over_the_toml() -> None:
    toml = {"agent_id": "from-toml", "tz": "America/New_York", "warmup": 7, "params": {"fast_period": 5}, "speed": 60}
    settings = build({"tz": "Europe/Berlin", "params": ("slow_period=9",)}, toml, {**KEYS, "AGENT_ID": "from-env"})
    assert settings.agent_id == "from-env"
    assert settings.tz == "Europe/Berlin"
    assert settings.warmup == 7
    assert settings.params == {"fast_period": "5", "slow_period": "9"}
    assert build({"local": True}, {"speed": 60}).speed == 60.0


def test_an_account_of_the_broker_api_is_traded_for_in_the_sandbox_or_live() -> None:
    account = "0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8"
    keys = {**KEYS, "ALPACA_API_KEY": "CK1", "ALPACA_ACCOUNT_ID": account}
    settings = build({}, {}, keys)
    assert (settings.account_id, settings.alpaca_url) == (account, "https://broker-api.sandbox.alpaca.markets")
    assert settings.data_url == "https://data.sandbox.alpaca.markets"
    settings = build({"live": True}, {}, keys)
    assert (settings.mode, settings.alpaca_url) == ("live", "https://broker-api.alpaca.markets")
    settings = build({}, {}, {**keys, "ALPACA_URL": "http://127.0.0.1:8090"})
    assert (settings.account_id, settings.data_url) == (account, "http://127.0.0.1:8090")


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({}, {}, "no Alpaca credentials: set ALPACA_API_KEY and ALPACA_SECRET_KEY, or try --local"),
        ({}, {"ALPACA_API_KEY": "PK"}, "ALPACA_API_KEY is set, but ALPACA_SECRET_KEY is not"),
        ({}, {**KEYS, "GOOGLE_CLOUD_PROJECT": ""}, "set GOOGLE_CLOUD_PROJECT, or try --local"),
        ({}, {**KEYS, "ALPACA_ACCOUNT_ID": "x"}, "Unset it to trade with the key's own account"),
        ({}, {**KEYS, "ALPACA_URL": "nonsense"}, "ALPACA_URL='nonsense': expected a URL"),
        ({"symbols": "none.txt"}, KEYS, "none.txt: no such symbols file"),
        ({"local": True, "tz": "Nowhere"}, {}, "--tz 'Nowhere'"),
        ({"local": True, "speed": "slow"}, {}, "--speed 'slow'"),
        ({"local": True, "cash": "0"}, {}, "--cash '0'"),
        ({"local": True, "resample": "5x"}, {}, "--resample '5x'"),
        ({"local": True, "resample": "1m"}, {}, "--resample 1m: expected a longer time frame"),
        ({"local": True, "timeframe": "5m", "resample": "7m"}, {}, "a multiple of --timeframe 5m"),
        ({"local": True, "timeframe": "30s"}, {}, "--timeframe 30s: expected whole minutes"),
        ({"local": True, "warmup": 10}, {}, "--warmup has no history to draw from"),
        ({"data": ("x",)}, KEYS, "--data, --speed and --cash go with --local"),
        ({"local": True}, {"AGENT_ID": "a/b"}, "AGENT_ID 'a/b'"),
        ({"local": True, "params": ("x",)}, {}, "expected name=value"),
    ],
)
def test_a_users_mistake_is_named(options: dict[str, Any], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(options, {}, environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no symbols in it"),
        ("# only a comment\n", "no symbols in it"),
        ("SPY\n$$$\n", "line 2: '$$$' is not a symbol"),
    ],
)
def test_a_bad_symbols_file_is_a_usage_error(
    in_a_folder_with_symbols: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_a_folder_with_symbols / "symbols.txt").write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(["run", "--local"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["run", "--nonsense"], ["nothing"], ["run", "--warmup", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert caught.value.code == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_waiting_ends_with_the_code_of_the_signal(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with StopWaiter() as waiter:
        os.kill(os.getpid(), number)  # before `wait`, and not lost
        assert waiter.wait_for_code() == code
    assert signal.getsignal(number) is before


def test_waiting_ends_with_one_after_a_failure() -> None:
    with StopWaiter() as waiter:
        error = OSError("gone")
        assert waiter.wait(0.0) is None
        threading.Timer(0.02, waiter.fail, (error,)).start()
        assert waiter.wait_for_code() == 1
        assert waiter.errors == [error]
