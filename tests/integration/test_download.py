"""Downloads through the real clients, from the simulated exchange, with faults on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dry_work.alpaca.download import Downloader, DownloadResult, plan_units
from dry_work.alpaca.download_api import HistoryApi
from dry_work.alpaca.download_plan import build_series, choose_span
from dry_work.alpaca.download_record import DownloadRecord, WorkFolder
from dry_work.alpaca.limits import UNSHARED, RateLimit, RateLimiter
from dry_work.clock import DAY_NS, SECOND_NS, ManualClock
from dry_work.errors import ConfigError, FeedError, VenueAuthError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import DAY_START_NS, synthetic_day
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.feeds.recorded_ticks import TickRecording, read_recordings, read_ticks
from dry_work.recording.catalog import CatalogWriter
from dry_work.recording.tables import Kind
from dry_work.settings import Credentials
from dry_work.storage import open_storage

from .download_servers import DataServer, pass_on, serve_rows

KEYS = Credentials(key="known", secret="hidden")
DAY = "2024-06-11"  # of the synthetic day
OPTION = "AAPL240315C00172500"
DEADLINE_S = 60.0


def serve(recording: Recording, ticks: TickRecording | None = None, **options: Any) -> ExchangeServer:
    """Start an exchange whose whole recording has happened."""
    server = ExchangeServer(recording, ticks=ticks, speed=1e8, keys={KEYS.key: KEYS.secret}, **options)
    server.start()
    deadline = time.monotonic() + DEADLINE_S
    while server.describe()["state"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return server


def write_ticks(folder: Path) -> list[Path]:
    """Write trades and quotes of SPY; some of a time, some in fractions of a microsecond, two quotes alike."""
    rng = random.Random(3)
    times = np.sort(rng.choices(range(DAY_START_NS, DAY_START_NS + 600 * SECOND_NS, 77), k=500)).astype("int64")
    times[100:105] = times[100]
    stamps = pa.array(times).cast(pa.timestamp("ns", tz="UTC"))
    prices = [rng.uniform(500, 600) for _ in times]
    symbols = ["SPY"] * len(times)
    trades = {
        "symbol": symbols, "timestamp": stamps, "exchange": ["V"] * len(times), "price": prices,
        "size": [float(rng.randint(1, 900)) for _ in times], "conditions": [["@", "I"]] * len(times),
        "tape": ["B"] * len(times),
    }  # fmt: skip
    bids = [price - 0.01 for price in prices]
    bids[101] = bids[100]
    asks = list(prices)
    asks[101] = asks[100]
    quotes = {
        "symbol": symbols, "timestamp": stamps, "bid_price": bids, "bid_size": [1.0] * len(times),
        "ask_price": asks, "ask_size": [2.0] * len(times),
    }  # fmt: skip
    for name, columns in (("trades", trades), ("quotes", quotes)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return [folder / "trades.parquet", folder / "quotes.parquet"]


@pytest.fixture(scope="module")
def recording() -> Recording:
    return synthetic_day(["SPY", "IBM", "BTC/USD"], minutes=240)


@pytest.fixture(scope="module")
def ticks(tmp_path_factory: pytest.TempPathFactory) -> TickRecording:
    return read_ticks(write_ticks(tmp_path_factory.mktemp("ticks")))


@pytest.fixture(scope="module")
def exchange(recording: Recording, ticks: TickRecording) -> Iterator[ExchangeServer]:
    server = serve(recording, ticks)
    yield server
    server.stop()


@pytest.fixture
def proxy(exchange: ExchangeServer) -> Iterator[DataServer]:
    server = DataServer(pass_on(exchange.url))
    yield server
    server.stop()


class Download:
    """A download into `root`, run again and again. Its waits take no time: they move its clock."""

    def __init__(self, root: Path, url: str, *, clock: ManualClock | None = None) -> None:
        self.root = root
        self.url = url
        self.clock = clock or ManualClock(time.time_ns())
        self.keys: Credentials | None = KEYS
        self.limit = RateLimit(100_000, shares=UNSHARED)
        self.waits: list[float] = []
        self.pause: Callable[[float], bool] = self._pause

    def _pause(self, seconds: float) -> bool:
        if seconds:
            self.waits.append(seconds)
            self.clock.advance(seconds)
        return False

    def run(
        self, symbols: Sequence[str], *, kind: Kind = "bars", start: str = DAY, end: str | None = DAY, **options: Any
    ) -> DownloadResult:
        series = build_series(symbols, kind=kind, **options)
        now_ns = self.clock.time_ns()
        spans = {one: choose_span(one, start=start, end=end, days=None, now_ns=now_ns) for one in series}
        storage = open_storage(self.root)
        catalog, record = CatalogWriter(storage, prefer="new"), DownloadRecord(storage)
        units, _ = plan_units(spans, catalog=catalog, record=record)
        self.api = HistoryApi(
            self.keys,
            data_url=self.url,
            limiter=RateLimiter(self.limit, clock=self.clock),
            pause=self.pause,
            clock=self.clock,
            rng=random.Random(1),
        )
        try:
            with WorkFolder(self.root / ".downloads") as work:
                downloader = Downloader(self.api, catalog=catalog, record=record, work=work, clock=self.clock)
                return downloader.run(units)
        finally:
            self.api.close()


def check_bars(found: Recording, expected: Recording, symbols: Sequence[str]) -> None:
    """Compare every column that Alpaca's API tells, to the last bit."""
    assert set(found.symbols) == set(symbols)
    for symbol in symbols:
        columns, wanted = found.columns(symbol), expected.columns(symbol)
        told = [name for name in wanted if name in ("ts_event_ns", "open", "high", "low", "close", "volume")]
        told += [name for name in ("trade_count", "vwap") if name in wanted]
        assert set(columns) == set(told)
        for name in told:
            assert columns[name].tobytes() == wanted[name].tobytes(), (symbol, name)


def check_ticks(found: TickRecording, expected: TickRecording, kind: Kind, symbol: str) -> None:
    assert kind != "bars"
    one, other = found.table(kind, symbol), expected.table(kind, symbol)
    assert one is not None
    assert other is not None
    assert one.times.tobytes() == other.times.tobytes()
    for name, column in other.numbers.items():
        assert one.numbers[name].tobytes() == column.tobytes(), name
    for name in other.texts:
        at = one.conditions if name == "conditions" else lambda row, name=name: one.text(name, row)
        wanted = other.conditions if name == "conditions" else lambda row, name=name: other.text(name, row)
        assert [at(row) for row in range(len(one))] == [wanted(row) for row in range(len(other))], name


def test_bars_of_stocks_and_crypto_equal_their_source(tmp_path: Path, exchange: ExchangeServer) -> None:
    symbols = ["SPY", "IBM", "BTC/USD"]
    result = Download(tmp_path / "data", exchange.url).run(symbols)
    assert (result.stopped, result.units_done, result.refused) == (False, 3, {})
    assert result.rows == sum(map(exchange.recording.count, symbols))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")) == [
        f"data/bars/1m/{name}/{DAY}.parquet" for name in ("BTC-USD", "IBM", "SPY")
    ]
    check_bars(read_bars([tmp_path / "data"]), exchange.recording, symbols)


@pytest.mark.parametrize("page_rows", [None, 7])
@pytest.mark.parametrize("kind", ["trades", "quotes"])
def test_trades_and_quotes_equal_their_source(
    tmp_path: Path, proxy: DataServer, ticks: TickRecording, kind: Kind, page_rows: int | None
) -> None:
    proxy.page_rows = page_rows
    result = Download(tmp_path / "data", proxy.url).run(["SPY"], kind=kind)
    assert result.rows == 500
    assert len(proxy.requests) == (1 if page_rows is None else 72)
    check_ticks(read_ticks([tmp_path / "data"]), ticks, kind, "SPY")


@pytest.mark.recordings
def test_real_recordings_come_back_to_the_last_bit(tmp_path: Path, recordings: Path) -> None:
    names = ("bars-IBM-2013-10-07", "bars-IBM-2013-10-08", "trades-IBM-2013-10-07", "quotes-IBM-2013-10-07",
             "bars-BTC-USD-2017-09-03")  # fmt: skip
    bars, ticks = read_recordings([recordings / f"{name}.parquet" for name in names])
    exchange = serve(bars, ticks)
    try:
        download = Download(tmp_path / "data", exchange.url)
        for kind in ("bars", "trades", "quotes"):
            download.run(["IBM"], kind=kind, start="2013-10-01", end="2013-10-31")
        download.run(["BTC/USD"], start="2017-09-01", end="2017-09-30")
    finally:
        exchange.stop()
    check_bars(read_bars([tmp_path / "data"]), bars, ["IBM", "BTC/USD"])
    found = read_ticks([tmp_path / "data"])
    check_ticks(found, ticks, "trades", "IBM")
    check_ticks(found, ticks, "quotes", "IBM")
    assert len(found) == 24_293 + 109_067


def test_a_request_names_what_alpaca_asks_for(tmp_path: Path, proxy: DataServer) -> None:
    download = Download(tmp_path / "data", proxy.url)
    download.run(["SPY", "BTC/USD"], feed="iex", adjustment="split")
    download.run(["SPY"], kind="trades")
    times = {"start": f"{DAY}T00:00:00Z", "end": f"{DAY}T23:59:59.999999999Z", "limit": "10000", "sort": "asc"}
    assert proxy.requests == [
        ("/v2/stocks/bars", {"symbols": "SPY", "timeframe": "1Min", "feed": "iex", "adjustment": "split", **times}),
        ("/v1beta3/crypto/us/bars", {"symbols": "BTC/USD", "timeframe": "1Min", **times}),
        ("/v2/stocks/trades", {"symbols": "SPY", "feed": "sip", **times}),
    ]


def test_longer_bars_have_a_place_of_their_own(tmp_path: Path, exchange: ExchangeServer) -> None:
    download = Download(tmp_path / "data", exchange.url)
    for timeframe in ("5m", "1h", "1d"):
        download.run(["SPY"], timeframe=timeframe)
    found = sorted(str(path.relative_to(tmp_path / "data")) for path in tmp_path.rglob("*.parquet"))
    assert found == ["bars/1d/SPY/2024.parquet", f"bars/1h/SPY/{DAY}.parquet", f"bars/5m/SPY/{DAY}.parquet"]
    hours = read_bars([tmp_path / "data" / "bars" / "1h"])
    assert hours.columns("SPY")["volume"].sum() == exchange.recording.columns("SPY")["volume"].sum()


def test_what_is_there_is_not_asked_for_again(tmp_path: Path, proxy: DataServer) -> None:
    download = Download(tmp_path / "data", proxy.url)
    download.run(["SPY", "BTC/USD"], start="2024-05-01", end="2024-06-30")
    assert len(proxy.requests) == 4
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert download.run(["SPY", "BTC/USD"], start="2024-05-01", end="2024-06-30").rows == 0
    assert download.run(["SPY"], start="2024-05-17", end="2024-06-03").rows == 0
    assert len(proxy.requests) == 4
    download.run(["SPY"], start="2024-04-20", end="2024-07-03")
    assert [(query["start"], query["end"][:10]) for _, query in proxy.requests[4:]] == [
        ("2024-04-20T00:00:00Z", "2024-04-30"),
        ("2024-07-01T00:00:00Z", "2024-07-03"),
    ]
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}


def test_a_day_in_parts_becomes_one_day(tmp_path: Path, exchange: ExchangeServer) -> None:
    download = Download(tmp_path / "data", exchange.url)
    download.run(["SPY"], start=f"{DAY}T14:30:00Z", end=f"{DAY}T15:10:00Z")
    download.run(["SPY"])
    check_bars(read_bars([tmp_path / "data"]), exchange.recording, ["SPY"])


def test_a_file_that_was_deleted_is_downloaded_again(tmp_path: Path, proxy: DataServer) -> None:
    download = Download(tmp_path / "data", proxy.url)
    download.run(["SPY"], start="2024-06-01", end="2024-06-30")
    path = tmp_path / "data" / "bars" / "1m" / "SPY" / f"{DAY}.parquet"
    content = path.read_bytes()
    path.unlink()
    download.run(["SPY"], start="2024-06-01", end="2024-06-30")
    assert path.read_bytes() == content
    assert [query["start"][:10] for _, query in proxy.requests] == ["2024-06-01", DAY]


@pytest.mark.parametrize("kind", ["bars", "trades"])
def test_a_day_that_is_not_over_is_fetched_again(tmp_path: Path, proxy: DataServer, kind: Kind) -> None:
    clock = ManualClock(DAY_START_NS + 3600 * SECOND_NS)
    download = Download(tmp_path / "data", proxy.url, clock=clock)
    options: dict[str, Any] = {"kind": kind, "start": "2024-06-10", "end": None}
    first = download.run(["SPY"], **options)
    before = len(proxy.requests)
    again = download.run(["SPY"], **options)
    assert again.rows == first.rows > 0
    assert [query["start"] for _, query in proxy.requests[before:]] == [f"{DAY}T00:00:00Z"]
    clock.advance_ns(DAY_NS)
    assert download.run(["SPY"], **{**options, "end": DAY}).rows >= first.rows
    before = len(proxy.requests)
    download.run(["SPY"], **{**options, "end": DAY})
    assert len(proxy.requests) == before
    source = {"bars": read_bars, "trades": read_ticks}[kind]([tmp_path / "data"])  # type: ignore[operator]
    if isinstance(source, Recording):
        assert source.count("SPY") == synthetic_day(["SPY"], minutes=240).count("SPY")
    else:
        assert len(source) == 500


TOO_MANY = b'{"message": "too many requests."}'
FAULTS: dict[str, Any] = {
    "429": (429, TOO_MANY, {"Retry-After": "3"}),
    "500": (500, b'{"message": "internal server error occurred"}', {}),
    "502": (502, b"<html>bad gateway</html>", {}),
    "html": (200, b"<html>log in</html>", {"Content-Type": "text/html"}),
    "empty": (200, b"", {}),
    "cut": "cut",
    "short": "short",
    "drop": "drop",
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_page_that_breaks_is_fetched_again_from_its_token(
    tmp_path: Path, proxy: DataServer, exchange: ExchangeServer, fault: str
) -> None:
    proxy.page_rows = 100
    download = Download(tmp_path / "data", proxy.url)
    proxy.faults.extend([None, FAULTS[fault], None])
    result = download.run(["SPY"])
    assert result.rows == exchange.recording.count("SPY")
    check_bars(read_bars([tmp_path / "data"]), exchange.recording, ["SPY"])
    first, broken, repeated, *_ = proxy.tokens
    assert first is None
    assert broken is not None
    assert broken == repeated
    assert len(set(proxy.tokens)) == len(proxy.tokens) - 1
    if fault == "429":
        assert sum(download.waits) >= 3.0
        assert download.api.counters["refused"] == 1
    assert download.waits


def test_a_fault_on_every_second_request_loses_nothing(
    tmp_path: Path, proxy: DataServer, exchange: ExchangeServer
) -> None:
    proxy.page_rows = 20
    kinds = [*FAULTS.values()]
    for number in range(40):
        proxy.faults.extend([None, kinds[number % len(kinds)]])
    Download(tmp_path / "data", proxy.url).run(["SPY", "IBM", "BTC/USD"])
    check_bars(read_bars([tmp_path / "data"]), exchange.recording, ["SPY", "IBM", "BTC/USD"])


def test_the_request_limit_is_learned_and_never_exceeded(tmp_path: Path, recording: Recording) -> None:
    clock = ManualClock(time.time_ns())
    exchange = ExchangeServer(recording, speed=1e8, keys={KEYS.key: KEYS.secret}, clock=clock, requests_per_minute=5)
    exchange.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while exchange.describe()["state"] != "ended":
            assert time.monotonic() < deadline
            clock.advance(1.0)
            time.sleep(0.001)
        download = Download(tmp_path / "data", exchange.url, clock=clock)
        download.limit = RateLimit(shares=UNSHARED)
        result = download.run(["SPY"], start="2023-01-01", end="2024-12-31")
        assert result.units_done == 24
        assert download.api.counters == {"requests": 24}
        assert sum(download.waits) >= 4 * 59
        check_bars(read_bars([tmp_path / "data"]), recording, ["SPY"])
    finally:
        exchange.stop()


def test_it_gives_up_when_nobody_answers_for_too_long(tmp_path: Path) -> None:
    server = DataServer(serve_rows({}))
    server.stop()
    clock = ManualClock(time.time_ns())
    download = Download(tmp_path / "data", server.url, clock=clock)
    with pytest.raises(FeedError, match=r"SPY 1m bars 2024-06-11: no answer \(ConnectionError\), tried \d+ times"):
        download.run(["SPY"])
    assert 540 <= clock.monotonic() <= 600


def test_a_venue_that_asks_for_hours_is_not_waited_for(tmp_path: Path, proxy: DataServer) -> None:
    proxy.faults.append((429, TOO_MANY, {"Retry-After": "7200"}))
    with pytest.raises(FeedError, match="asks to wait for 7,200 s"):
        Download(tmp_path / "data", proxy.url).run(["SPY"])


def test_pages_that_stay_unreadable_are_told_soon(tmp_path: Path, proxy: DataServer) -> None:
    proxy.faults.extend([(200, b'{"bars": {"SPY": [{"t": "2024-06-11T14:00:00Z"}]}}', {})] * 3)
    with pytest.raises(FeedError, match=r"cannot be read \(the bars of SPY have a row without open\), tried 3 times"):
        Download(tmp_path / "data", proxy.url).run(["SPY"])


def test_a_page_that_names_itself_as_the_next_ends_it(tmp_path: Path, proxy: DataServer) -> None:
    proxy.faults.extend([(200, b'{"bars": {}, "next_page_token": "same"}', {})] * 2)
    with pytest.raises(FeedError, match="page 2 names itself"):
        Download(tmp_path / "data", proxy.url).run(["SPY"])


REFUSALS: list[tuple[int, bytes, str]] = [
    (401, b'{"message": "request is not authorized"}', "refuses the credentials; set ALPACA_API_KEY"),
    (403, b'{"message": "forbidden."}', "refuses the credentials; set ALPACA_API_KEY"),
    (
        403,
        b'{"code": 42210000, "message": "subscription does not permit querying recent SIP data"}',
        r"recent SIP data \(HTTP 403\): a subscription .* without one give --feed iex, or an --end at least 15 minutes",
    ),
]


@pytest.mark.parametrize(("status", "body", "sentence"), REFUSALS)
def test_refused_credentials_and_subscriptions_are_told_with_what_fixes_them(
    tmp_path: Path, proxy: DataServer, status: int, body: bytes, sentence: str
) -> None:
    proxy.faults.append((status, body, {}))
    with pytest.raises(VenueAuthError, match=sentence) as caught:
        Download(tmp_path / "data", proxy.url).run(["SPY"])
    assert KEYS.secret not in str(caught.value)
    assert len(proxy.requests) == 1


def test_a_wrong_key_is_told_by_the_exchange(tmp_path: Path, exchange: ExchangeServer) -> None:
    download = Download(tmp_path / "data", exchange.url)
    download.keys = Credentials(key="other", secret="hidden")
    with pytest.raises(VenueAuthError, match="refuses the credentials"):
        download.run(["SPY"])


def test_crypto_needs_no_credentials_and_stocks_do(tmp_path: Path, exchange: ExchangeServer) -> None:
    download = Download(tmp_path / "data", exchange.url)
    download.keys = None
    assert download.run(["BTC/USD"]).rows == exchange.recording.count("BTC/USD")
    with pytest.raises(VenueAuthError, match="SPY: no Alpaca credentials: set ALPACA_API_KEY"):
        download.run(["SPY"])


def test_a_symbol_that_alpaca_refuses_does_not_keep_the_others(tmp_path: Path, proxy: DataServer) -> None:
    proxy.faults.extend([None, (422, b'{"code": 42210001, "message": "invalid symbol: IBM"}', {})])
    result = Download(tmp_path / "data", proxy.url).run(["SPY", "IBM", "BTC/USD"], start="2024-05-01", end="2024-06-30")
    assert list(result.refused) == ["SPY 1m bars"]
    assert "SPY 1m bars 2024-06-01 to 2024-06-30: invalid symbol: IBM (HTTP 422)" in result.refused["SPY 1m bars"]
    assert set(read_bars([tmp_path / "data"]).symbols) == {"IBM", "BTC/USD"}


def test_the_word_to_stop_ends_it_between_pages_and_it_goes_on_there(
    tmp_path: Path, proxy: DataServer, exchange: ExchangeServer
) -> None:
    proxy.page_rows = 50
    download = Download(tmp_path / "data", proxy.url)
    go_on = download.pause
    download.pause = lambda seconds: len(proxy.requests) >= 3 or go_on(seconds)
    result = download.run(["SPY", "IBM"])
    assert (result.stopped, result.units_done, result.rows) == (True, 0, 150)
    assert len(proxy.requests) == 3
    download.pause = go_on
    assert not download.run(["SPY", "IBM"]).stopped
    tokens = [query.get("page_token") for _, query in proxy.requests if query["symbols"] == "SPY"]
    assert len(set(tokens)) == len(tokens)  # no page was asked for twice
    check_bars(read_bars([tmp_path / "data"]), exchange.recording, ["SPY", "IBM"])
    assert not list((tmp_path / "data" / ".downloads").rglob("*.arrow"))


def test_a_token_that_is_not_taken_any_more_starts_the_unit_over(
    tmp_path: Path, proxy: DataServer, exchange: ExchangeServer
) -> None:
    proxy.page_rows = 50
    download = Download(tmp_path / "data", proxy.url)
    go_on = download.pause
    download.pause = lambda seconds: len(proxy.requests) >= 2 or go_on(seconds)
    download.run(["SPY"])
    download.pause = go_on
    proxy.faults.append((400, b'{"message": "invalid page_token"}', {}))
    result = download.run(["SPY"])
    assert result.rows == exchange.recording.count("SPY")
    assert proxy.tokens[2] is not None
    assert proxy.tokens[3] is None
    check_bars(read_bars([tmp_path / "data"]), exchange.recording, ["SPY"])


def test_another_feed_is_not_mixed_in(tmp_path: Path, exchange: ExchangeServer) -> None:
    download = Download(tmp_path / "data", exchange.url)
    download.run(["SPY"], feed="iex")
    with pytest.raises(ConfigError, match="holds SPY 1m bars of feed iex, raw, not of feed sip, raw"):
        download.run(["SPY"], feed="sip")


@pytest.mark.parametrize("page_rows", [None, 3])
def test_options_come_in_the_documented_shape(tmp_path: Path, page_rows: int | None) -> None:
    bars = [
        {"t": f"2024-03-01T15:{minute:02d}:00Z", "o": 1.1, "h": 1.3, "l": 1.05, "c": 1.2, "v": 12, "n": 3, "vw": 1.175}
        for minute in range(10)
    ]
    trades = [
        {"t": f"2024-03-01T15:00:00.{number:09d}Z", "p": 1.1 + number / 7, "s": 2, "x": "C", "c": "I"}
        for number in range(10)
    ]
    server = DataServer(serve_rows({"/v1beta1/options/bars": bars, "/v1beta1/options/trades": trades}))
    server.page_rows = page_rows
    try:
        download = Download(tmp_path / "data", server.url)
        day = {"start": "2024-03-01", "end": "2024-03-01"}
        assert download.run([OPTION], **day).rows == 10  # type: ignore[arg-type]
        assert download.run([OPTION], kind="trades", **day).rows == 10
    finally:
        server.stop()
    assert "feed" not in server.requests[0][1]
    assert server.requests[0][1]["symbols"] == OPTION
    columns = read_bars([tmp_path / "data"]).columns(OPTION)
    assert columns["vwap"].tolist() == [1.175] * 10
    table = read_ticks([tmp_path / "data"]).table("trades", OPTION)
    assert table is not None
    assert table.numbers["price"].tolist() == [1.1 + number / 7 for number in range(10)]
    assert np.diff(table.times).tolist() == [1] * 9
    assert table.conditions(0) == ("I",)
    assert [path.name for path in (tmp_path / "data" / "trades" / OPTION).iterdir()] == [f"{date(2024, 3, 1)}.parquet"]
