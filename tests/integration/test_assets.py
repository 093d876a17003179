from __future__ import annotations

from collections.abc import Iterator

import pytest

from dry_work.alpaca.assets import check_symbols
from dry_work.alpaca.simulated import ExchangeControl, is_alpaca
from dry_work.alpaca.trading import TradingApi
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


def connect(exchange: ExchangeServer, keys: Credentials = KEYS, timeout_s: float = 10.0) -> TradingApi:
    return TradingApi(keys.key, keys.secret, url=exchange.url, timeout_s=timeout_s)


def test_known_symbols_pass(exchange: ExchangeServer) -> None:
    api, symbols = connect(exchange), ["SPY", "BTC/USD"]
    check_symbols(symbols, api)
    assert [api.is_tradable(symbol) for symbol in symbols] == [True, True]


@pytest.mark.parametrize("most", [0, 40])
def test_unknown_symbols_are_named(exchange: ExchangeServer, most: int) -> None:
    with pytest.raises(ConfigError, match="has no asset ZZZZ, XXX/USD: check the symbols file"):
        check_symbols(["SPY", "ZZZZ", "XXX/USD"], connect(exchange), most_look_ups=most)


def test_refused_credentials_are_told_without_them(exchange: ExchangeServer) -> None:
    with pytest.raises(VenueAuthError, match="the credentials were refused") as caught:
        check_symbols(["SPY"], connect(exchange, Credentials(key="other", secret="hidden")))
    assert "hidden" not in str(caught.value)


def test_the_exchange_tells_of_its_session(exchange: ExchangeServer) -> None:
    session = ExchangeControl(connect(exchange)).session()
    assert session is not None
    assert session.lockstep
    assert session.symbols == ("SPY", "BTC/USD")
    assert is_alpaca("https://paper-api.alpaca.markets")
    assert not is_alpaca(exchange.url)


def test_a_consumer_with_an_unknown_symbol_is_refused(exchange: ExchangeServer) -> None:
    control = ExchangeControl(connect(exchange))
    with pytest.raises(ConfigError, match="ZZZZ"):
        control.register("agent", ("SPY", "ZZZZ"))
    control.register("agent", ("SPY",))
    control.unregister("agent")


def test_an_exchange_that_is_not_there_is_named(exchange: ExchangeServer) -> None:
    exchange.stop()
    with pytest.raises(BrokerUnavailableError, match="does not answer as it should"):
        ExchangeControl(connect(exchange, timeout_s=2.0)).session()
