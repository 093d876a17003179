"""The newest bars of the market-data API, fetched by the real clients from the simulated exchange."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dry_work.alpaca.history import BarHistory
from dry_work.alpaca.trading import TradingApi
from dry_work.errors import BrokerUnavailableError, VenueAuthError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording
from dry_work.settings import Credentials
from tests.integration.ended_exchange import KEYS, run_ended_exchange


@pytest.fixture(scope="module")
def recording() -> Recording:
    return synthetic_day(["SPY", "IBM", "BTC/USD", "SPY240621C00550000"], minutes=60)


@pytest.fixture(scope="module")
def exchange(recording: Recording) -> Iterator[ExchangeServer]:
    with run_ended_exchange(recording) as server:
        yield server


def connect(exchange: ExchangeServer, keys: Credentials = KEYS) -> BarHistory:
    api = TradingApi(KEYS.key, KEYS.secret, url=exchange.url)
    return BarHistory(keys, api=api, data_url=exchange.url)


@pytest.mark.parametrize("count", [1, 20, 500])
def test_the_newest_bars_come_as_slices_by_rising_time(
    exchange: ExchangeServer, recording: Recording, count: int
) -> None:
    slices = connect(exchange).newest_bars(recording.symbols, count)
    assert [piece.end_ns for piece in slices] == sorted({piece.end_ns for piece in slices})
    for symbol in recording.symbols:
        found = [bar for piece in slices for bar in piece.bars if bar.symbol == symbol]
        expected = recording.bars(symbol)[-count:]
        assert [(b.ts_event_ns, b.open, b.high, b.low, b.close, b.volume) for b in found] == [
            (b.ts_event_ns, b.open, b.high, b.low, b.close, b.volume) for b in expected
        ]


def test_no_bars_are_asked_for_without_need(exchange: ExchangeServer) -> None:
    assert connect(exchange).newest_bars(["SPY"], 0) == []


def test_refused_credentials_are_told(exchange: ExchangeServer) -> None:
    with pytest.raises(VenueAuthError, match="refused the credentials"):
        connect(exchange, Credentials(key="other", secret="hidden")).newest_bars(["SPY"], 5)


def test_an_api_that_is_not_there_is_named(recording: Recording) -> None:
    server = ExchangeServer(recording)
    server.start()
    history = connect(server)
    server.stop()
    with pytest.raises(BrokerUnavailableError):
        history.newest_bars(["SPY"], 5)
