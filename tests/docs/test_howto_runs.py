"""How-tos that are followed word for word: their files are written, their commands run, their output compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.service import HubService
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC

from .reader import Reader

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PROJECT = "local"

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "curl", "jq")), reason="bash, curl and jq are needed"
)


@contextmanager
def run_stack(exchange: ExchangeServer) -> Iterator[dict[str, str]]:
    """Run an exchange, a Pub/Sub server and a hub, as a page starts them; yield the variables that it exports."""
    topics = [f"projects/{PROJECT}/topics/{name}" for name in (MARKET_TOPIC, CRYPTO_TOPIC)]
    with ExitStack() as stack:
        stack.callback(exchange.stop)
        exchange.start()
        pubsub = EmbeddedPubSub(topics=topics)
        stack.callback(pubsub.stop)
        pubsub.start()
        hub = HubService(
            exchange.stream_url,
            key="hub",
            secret="any",
            project=PROJECT,
            symbols=["SPY"],
            pubsub_endpoint=pubsub.target,
            market_topic=MARKET_TOPIC,
            crypto_topic=CRYPTO_TOPIC,
        )
        stack.callback(hub.stop)
        hub.start()
        yield {
            "PUBSUB_EMULATOR_HOST": pubsub.target,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "ALPACA_URL": exchange.url,
            "ALPACA_DATA_URL": exchange.url,
            "ALPACA_STREAM_URL": exchange.stream_url,
        }


def follow(page: str, home: Path, variables: dict[str, str]) -> tuple[int, int]:
    reader = Reader(home, variables=variables)
    try:
        return reader.follow(HOWTO / page)
    finally:
        reader.end()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("page", "blocks"), [("strategy.md", 2), ("indicator.md", 1), ("brackets.md", 2)])
def test_a_reader_of_a_page_about_strategies_sees_what_it_shows(page: str, blocks: int, tmp_path: Path) -> None:
    assert follow(page, tmp_path, {}) == (blocks, blocks)


@needs_tools
@pytest.mark.timeout(600)
def test_a_reader_of_the_page_about_options_buys_backtests_and_exercises_them(tmp_path: Path) -> None:
    open_market = ExchangeServer(synthetic_day(["SPY"]), rules="alpaca", speed=30.0)
    ended = ExchangeServer(synthetic_day(["SPY"]), rules="alpaca", speed=1e6)
    with ExitStack() as stack:
        for exchange in (open_market, ended):
            stack.callback(exchange.stop)
            exchange.start()
        ran, compared = follow("options.md", tmp_path, {"ALPACA_URL": open_market.url, "ALPACA_DATA_URL": ended.url})
    assert (ran, compared) == (6, 5)


@needs_tools
@pytest.mark.timeout(600)
def test_a_reader_of_the_page_about_accounts_runs_two_agents_on_one_hub(tmp_path: Path) -> None:
    market = synthetic_day(["SPY"], minutes=60)
    with run_stack(ExchangeServer(market, rules="backtrader", speed=None, consumers=2)) as variables:
        assert follow("accounts.md", tmp_path, variables) == (3, 2)


@needs_tools
@pytest.mark.timeout(900)
def test_a_reader_of_the_page_about_recovery_gets_out_of_each_trouble(tmp_path: Path) -> None:
    (tmp_path / "symbols.txt").write_text("SPY\n")
    credentials = {"ALPACA_API_KEY": "me", "ALPACA_SECRET_KEY": "any"}
    with run_stack(ExchangeServer(synthetic_day(["SPY"]), rules="alpaca", speed=20.0)) as variables:
        ran, compared = follow("recovery.md", tmp_path, {**variables, **credentials})
    assert ran >= 13
    assert compared >= 11
