"""What `dry-work publish` makes of recordings, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from dry_work.cli import main
from dry_work.cli.publish import assign_topics, build_messages, describe_topic, parse_symbol_list
from dry_work.errors import ConfigError
from dry_work.hub.ports import TopicStatus
from dry_work.market.messages import Bar, Watermark

TOPICS = {"SPY": "market-data", "BTC/USD": "crypto-data"}


def bar(symbol: str) -> Bar:
    return Bar(symbol=symbol, ts_event_ns=60, open=1, high=1, low=1, close=1, volume=1)


def test_each_topic_gets_its_bars_and_a_watermark_that_counts_them() -> None:
    found = build_messages(7, 120, [bar("SPY")], last=False, topics=TOPICS)
    spy, mark = found["market-data"]
    assert isinstance(spy, Bar)
    assert (spy.symbol, spy.source) == ("SPY", "alpaca_stock")
    assert mark == Watermark(slice=7, end_ns=120, bars=1)
    assert found["crypto-data"] == [Watermark(slice=7, end_ns=120, bars=0)]


def test_the_last_watermark_says_so_on_every_topic() -> None:
    found = build_messages(1, 120, [bar("BTC/USD")], last=True, topics=TOPICS)
    marks = [messages[-1] for messages in found.values()]
    assert [isinstance(mark, Watermark) and mark.last for mark in marks] == [True, True]
    crypto = found["crypto-data"][0]
    assert isinstance(crypto, Bar)
    assert crypto.source == "alpaca_crypto"


def test_symbols_go_to_the_topic_of_their_kind() -> None:
    assert assign_topics(["SPY", "BTC/USD"], market_topic="market-data", crypto_topic="crypto-data") == TOPICS
    assert assign_topics(["SPY"], market_topic="m-t", crypto_topic="c-t") == {"SPY": "m-t"}
    with pytest.raises(ConfigError, match="need a topic each"):
        assign_topics(["SPY"], market_topic="one", crypto_topic="one")
    option = "AAPL240315C00172500"
    assert assign_topics([option], market_topic="m-t", crypto_topic="c-t") == {option: "m-t"}


def test_symbols_come_from_a_file_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("SPY\n# not this\nbtc/usd\n")
    assert parse_symbol_list(str(tmp_path / "mine.txt")) == ["SPY", "BTC/USD"]
    assert parse_symbol_list("spy,ETH/USD") == ["SPY", "ETH/USD"]
    with pytest.raises(ConfigError, match="neither a file nor a comma list"):
        parse_symbol_list("no such file")


def test_a_topic_is_summed_up() -> None:
    assert describe_topic(TopicStatus(topic="market-data", published=1_200, requests=3)) == (
        "market-data: 1,200 bars and watermarks in 3 requests"
    )
    status = TopicStatus(topic="t", published=1, requests=1, failures=2, dropped=5)
    assert describe_topic(status) == "t: 1 bars and watermarks in 1 requests, 2 failed and sent again, 5 not published"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--project", "p"], "Missing option '--data'"),
        (["--data", "none.csv", "--project", "p"], "none.csv"),
        (["--data", "bars.csv"], "no Google Cloud project: give --project or set GOOGLE_CLOUD_PROJECT"),
        (["--data", "bars.csv", "--project", "p", "--speed", "0"], "--speed '0'"),
        (["--data", "bars.csv", "--project", "p", "--symbols", "IBM"], "no bars of IBM"),
        (["--data", "bars.csv", "--project", "p", "--crypto-topic", "market-data"], "need a topic each"),
    ],
)
def test_a_mistake_is_a_usage_error_with_one_sentence(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("GOOGLE_CLOUD_PROJECT", "MARKET_DATA_TOPIC", "CRYPTO_DATA_TOPIC", "PUBSUB_TOPIC_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    row = "SPY,2024-06-11T13:30:00Z,10,11,9,10.5,100"
    (tmp_path / "bars.csv").write_text(f"symbol,timestamp,open,high,low,close,volume\n{row}\n")
    with pytest.raises(SystemExit) as caught:
        main(["publish", *options])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown
