from __future__ import annotations

from collections.abc import Iterator

import pytest

from dry_work.alpaca import assets
from dry_work.alpaca.assets import check_symbols
from dry_work.errors import BrokerUnavailableError, ConfigError, VenueAuthError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.settings import Credentials

KEYS = Credentials(key="known", secret="s")


@pytest.fixture
def exchange() -> Iterator[ExchangeServer]:
    server = ExchangeServer(synthetic_day(["SPY", "BTC/USD"], minutes=5), keys={KEYS.key: KEYS.secret})
    server.start()
    yield server
    server.stop()


def test_known_symbols_pass(exchange: ExchangeServer) -> None:
    check_symbols(["SPY", "BTC/USD"], KEYS, url=exchange.url)


@pytest.mark.parametrize("most", [0, 40])
def test_unknown_symbols_are_named(exchange: ExchangeServer, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_MOST_LOOK_UPS", most)
    with pytest.raises(ConfigError, match="has no asset ZZZZ, XXX/USD: check the symbols file"):
        check_symbols(["SPY", "ZZZZ", "XXX/USD"], KEYS, url=exchange.url)


def test_refused_credentials_name_the_variables(exchange: ExchangeServer) -> None:
    with pytest.raises(VenueAuthError, match="check ALPACA_API_KEY and ALPACA_SECRET_KEY") as caught:
        check_symbols(["SPY"], Credentials(key="other", secret="hidden"), url=exchange.url)
    assert "hidden" not in str(caught.value)


def test_a_venue_that_is_not_there_is_named(exchange: ExchangeServer) -> None:
    exchange.stop()
    with pytest.raises(BrokerUnavailableError, match="does not answer"):
        check_symbols(["SPY"], KEYS, url=exchange.url, timeout_s=2.0)
