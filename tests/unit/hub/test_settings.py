from __future__ import annotations

import re
from pathlib import Path

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.settings import HubSettings, build_settings, parse_stream_url, read_accounts

ENVIRONMENT = {
    "ALPACA_API_KEY": "key-id-value",
    "ALPACA_SECRET_KEY": "secret-value",
    "GOOGLE_CLOUD_PROJECT": "my-project",
    "HUB_SYMBOLS": "spy, BTC/USD",
}


def test_the_least_environment_gives_the_documented_defaults() -> None:
    assert build_settings(ENVIRONMENT) == HubSettings(
        key="key-id-value",
        secret="secret-value",
        symbols=("SPY", "BTC/USD"),
        project="my-project",
        stream_url="wss://stream.data.alpaca.markets",
        feed="iex",
        pubsub_endpoint=None,
        market_topic="market-data",
        crypto_topic="crypto-data",
        sinks=("pubsub",),
    )


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("ALPACA_STREAM_URL", "ws://127.0.0.1:8090/", "stream_url", "ws://127.0.0.1:8090"),
        ("ALPACA_FEED", "sip", "feed", "sip"),
        ("GOOGLE_CLOUD_PROJECT", "other", "project", "other"),
        ("PUBSUB_EMULATOR_HOST", "localhost:8085", "pubsub_endpoint", "localhost:8085"),
        ("MARKET_DATA_TOPIC", "stocks", "market_topic", "stocks"),
        ("PUBSUB_TOPIC_NAME", "stocks", "market_topic", "stocks"),
        ("CRYPTO_DATA_TOPIC", "coins", "crypto_topic", "coins"),
        ("HUB_SYMBOLS", "IBM", "symbols", ("IBM",)),
        ("HUB_SINKS", "PubSub,", "sinks", ("pubsub",)),
    ],
)
def test_each_variable_has_an_effect(variable: str, value: str, field: str, expected: object) -> None:
    assert getattr(build_settings({**ENVIRONMENT, variable: value}), field) == expected


@pytest.mark.parametrize(
    ("option", "value", "variable", "field"),
    [
        ("project", "from-option", "GOOGLE_CLOUD_PROJECT", "project"),
        ("feed", "sip", "ALPACA_FEED", "feed"),
        ("stream_url", "ws://option:1", "ALPACA_STREAM_URL", "stream_url"),
        ("pubsub_endpoint", "option:1", "PUBSUB_EMULATOR_HOST", "pubsub_endpoint"),
        ("market_topic", "option-topic", "MARKET_DATA_TOPIC", "market_topic"),
        ("crypto_topic", "option-topic", "CRYPTO_DATA_TOPIC", "crypto_topic"),
    ],
)
def test_an_option_wins_over_its_variable(option: str, value: str, variable: str, field: str) -> None:
    environment = {**ENVIRONMENT, variable: "not used: would be refused"}
    assert getattr(build_settings(environment, **{option: value}), field) == value


def test_empty_counts_as_not_set() -> None:
    environment = {**ENVIRONMENT, "ALPACA_FEED": "", "PUBSUB_EMULATOR_HOST": " ", "HUB_SINKS": ""}
    assert build_settings(environment, project="") == build_settings(ENVIRONMENT)


def test_symbols_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "symbols.txt"
    path.write_text("# mine\nspy\n\nBTC/USD\n", encoding="utf-8")
    assert build_settings(ENVIRONMENT, symbols=str(path)).symbols == ("SPY", "BTC/USD")


def test_the_other_name_of_the_secret_is_taken() -> None:
    environment = {**ENVIRONMENT, "ALPACA_API_SECRET": "secret-value"}
    assert build_settings(environment).secret == "secret-value"
    del environment["ALPACA_SECRET_KEY"]
    assert build_settings(environment).secret == "secret-value"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ALPACA_API_KEY": ""}, "ALPACA_SECRET_KEY is set, but ALPACA_API_KEY is not"),
        ({"ALPACA_SECRET_KEY": ""}, "ALPACA_API_KEY is set, but ALPACA_SECRET_KEY is not"),
        ({"ALPACA_API_KEY": "", "ALPACA_SECRET_KEY": ""}, "set ALPACA_API_KEY and ALPACA_SECRET_KEY"),
        ({"ALPACA_API_SECRET": "another"}, "ALPACA_SECRET_KEY and ALPACA_API_SECRET are both set and differ"),
        ({"PAPER_ALPACA_API_KEY_ID": "k"}, "PAPER_ALPACA_API_SECRET_KEY is not"),
        ({"MARKET_DATA_TOPIC": "aaa", "PUBSUB_TOPIC_NAME": "bbb"}, "MARKET_DATA_TOPIC and PUBSUB_TOPIC_NAME are both"),
        ({"MARKET_DATA_TOPIC": "crypto-data"}, "MARKET_DATA_TOPIC and CRYPTO_DATA_TOPIC are both 'crypto-data'"),
        ({"MARKET_DATA_TOPIC": "goog-x"}, "'goog-x' is not usable as MARKET_DATA_TOPIC"),
        ({"CRYPTO_DATA_TOPIC": "a/b"}, "'a/b' is not usable as CRYPTO_DATA_TOPIC"),
        ({"GOOGLE_CLOUD_PROJECT": ""}, "give --project or set GOOGLE_CLOUD_PROJECT"),
        ({"GOOGLE_CLOUD_PROJECT": "a/b"}, "'a/b' is not a Google Cloud project id"),
        ({"ALPACA_FEED": "opra"}, "'opra' is not a stock feed (ALPACA_FEED): one of iex, sip"),
        ({"ALPACA_STREAM_URL": "http://x"}, "'http://x' is not usable as ALPACA_STREAM_URL"),
        ({"PUBSUB_EMULATOR_HOST": "localhost"}, "'localhost' is not usable as PUBSUB_EMULATOR_HOST"),
        ({"PUBSUB_EMULATOR_HOST": "localhost:99999"}, "'localhost:99999' is not usable as PUBSUB_EMULATOR_HOST"),
        (
            {"HUB_SINKS": "kafka"},
            "'kafka' is not a sink (--sinks, HUB_SINKS): expected some of pubsub, nats, redis, websocket, grpc",
        ),
        ({"ALPACA_OPTION_FEED": "sip"}, "ALPACA_OPTION_FEED='sip': expected one of indicative, opra"),
        ({"HUB_SYMBOLS": ""}, "give --symbols or set HUB_SYMBOLS"),
        ({"HUB_SYMBOLS": "no/such/file.txt"}, "'no/such/file.txt' is neither a file nor a comma list of symbols"),
        ({"HUB_SYMBOLS": ","}, "is neither a file nor a comma list of symbols"),
    ],
)
def test_a_mistake_names_the_variable_the_value_and_what_is_allowed(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build_settings({**ENVIRONMENT, **change})
    assert "secret-value" not in str(caught.value)
    assert "key-id-value" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "stream.data.alpaca.markets", "ws://", "ws://host/v2/iex", "ws://host:0", "ws://host:x", "ws://host?a=1"],
)
def test_a_stream_url_has_scheme_host_and_port_alone(url: str) -> None:
    with pytest.raises(ConfigError, match="ALPACA_STREAM_URL"):
        parse_stream_url(url)


def test_credentials_in_the_stream_url_are_refused_without_showing_them() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_stream_url("wss://name:hidden@host")
    assert "hidden" not in str(caught.value)


def test_neither_repr_nor_the_masked_settings_show_the_credentials() -> None:
    settings = build_settings(ENVIRONMENT)
    for text in (repr(settings), str(settings), f"{settings.masked()}", f"{list(settings.__rich_repr__())}"):
        assert "secret-value" not in text
        assert "key-id-value" not in text
        assert "my-project" in text


# --- accounts

KEYS = {"ALPACA_API_KEY": "k", "ALPACA_SECRET_KEY": "s", "HUB_SINKS": "websocket"}


@pytest.mark.parametrize(
    ("variables", "environments"),
    [
        ({}, ["paper"]),
        ({"ALPACA_URL": "https://api.alpaca.markets"}, ["live"]),
        ({"ALPACA_LIVE_API_KEY": "l", "ALPACA_LIVE_SECRET_KEY": "m"}, ["paper", "live"]),
        ({"ALPACA_API_KEY_ID": "l", "ALPACA_API_SECRET_KEY": "m"}, ["paper", "live"]),
        ({"PAPER_ALPACA_API_KEY_ID": "k", "PAPER_ALPACA_API_SECRET_KEY": "s"}, ["paper"]),
        ({"ALPACA_KEY": "l", "ALPACA_SECRET": "m", "CREAM_ENV": "LIVE"}, ["paper", "live"]),
    ],
)
def test_each_account_is_known_by_any_of_its_pairs(variables: dict[str, str], environments: list[str]) -> None:
    accounts = read_accounts({**KEYS, **variables})
    assert [account.environment for account in accounts] == environments
    assert "s" not in {text for account in accounts for text in repr(account).split("'")}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ALPACA_LIVE_API_KEY": "l"}, "ALPACA_LIVE_API_KEY is set, but ALPACA_LIVE_SECRET_KEY is not"),
        ({"ALPACA_API_SECRET_KEY": "l"}, "ALPACA_API_SECRET_KEY is set, but ALPACA_API_KEY_ID is not"),
        (
            {"PAPER_ALPACA_API_KEY_ID": "other", "PAPER_ALPACA_API_SECRET_KEY": "s"},
            "ALPACA_API_KEY and PAPER_ALPACA_API_KEY_ID are both set for the paper account and differ",
        ),
        ({"CREAM_ENV": "TEST"}, "CREAM_ENV='TEST': expected PAPER or LIVE"),
        ({"PROXY_PORT": "99999"}, "PROXY_PORT='99999': expected a port"),
    ],
)
def test_a_contradiction_ends_the_start_with_its_names(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        build_settings({**KEYS, **variables})


def test_without_pubsub_neither_project_nor_symbols_are_needed() -> None:
    settings = build_settings({"ALPACA_KEY": "k", "ALPACA_SECRET": "s"}, sinks="websocket,grpc")
    assert (settings.project, settings.symbols, settings.key) == (None, (), "k")
    assert (settings.bind_host, settings.websocket_port) == ("127.0.0.1", 8099)


def test_the_simulated_exchange_stands_for_every_account() -> None:
    live = {"ALPACA_LIVE_API_KEY": "l", "ALPACA_LIVE_SECRET_KEY": "m"}
    accounts = read_accounts({**KEYS, **live, "ALPACA_URL": "http://127.0.0.1:8090/"})
    assert {account.url for account in accounts} == {"http://127.0.0.1:8090"}


def test_no_secret_is_shown() -> None:
    settings = build_settings({**KEYS, "ALPACA_API_KEY": "visible-key", "HUB_TOKEN": "visible-token"})
    assert "visible" not in repr(settings)
    assert "visible" not in str(settings.masked())


ACCOUNT = "0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8"


def test_an_account_of_the_broker_api_has_its_own_addresses() -> None:
    environment = {**ENVIRONMENT, "HUB_SINKS": "websocket", "ALPACA_ACCOUNT_ID": ACCOUNT.upper()}
    settings = build_settings(environment)
    (account,) = settings.accounts
    assert (account.account_id, account.url) == (ACCOUNT, "https://broker-api.sandbox.alpaca.markets")
    assert settings.stream_url == "wss://stream.data.sandbox.alpaca.markets"
    live = build_settings({**environment, "ALPACA_URL": "https://broker-api.alpaca.markets"})
    assert [(account.environment, account.url) for account in live.accounts] == [
        ("live", "https://broker-api.alpaca.markets")
    ]
    assert live.stream_url == "wss://stream.data.alpaca.markets"
    (account,) = build_settings({**environment, "ALPACA_URL": "http://127.0.0.1:8090"}).accounts
    assert account.url == "http://127.0.0.1:8090"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ALPACA_ACCOUNT_ID": "7"}, "ALPACA_ACCOUNT_ID '7'"),
        ({"ALPACA_ACCOUNT_ID": ACCOUNT, "ALPACA_URL": "https://paper-api.alpaca.markets"}, "is the Trading API"),
        ({"ALPACA_URL": "https://broker-api.sandbox.alpaca.markets"}, "set ALPACA_ACCOUNT_ID"),
        (
            {"ALPACA_ACCOUNT_ID": ACCOUNT, "ALPACA_LIVE_API_KEY": "k", "ALPACA_LIVE_SECRET_KEY": "s"},
            "a paper and a live account",
        ),
        ({"ALPACA_ACCOUNT_ID": ACCOUNT, "ALPACA_OAUTH": "token"}, "ALPACA_OAUTH and ALPACA_ACCOUNT_ID"),
    ],
)
def test_what_does_not_go_with_an_account_of_the_broker_api_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_accounts({**ENVIRONMENT, **variables})
