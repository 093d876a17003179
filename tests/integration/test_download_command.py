"""`dry-work download` as a process: killed, stopped, resumed, on a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dry_work.cli import main
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import read_bars

from .download_servers import DataServer, pass_on

DAY = "2024-06-11"
DEADLINE_S = 60.0
PERIOD = ("--start", DAY, "--end", DAY)

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def exchange() -> Iterator[ExchangeServer]:
    server = ExchangeServer(synthetic_day(["SPY", "IBM", "BTC/USD"], minutes=240), speed=1e8, keys={"known": "hidden"})
    server.start()
    deadline = time.monotonic() + DEADLINE_S
    while server.describe()["state"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield server
    server.stop()


@pytest.fixture
def proxy(exchange: ExchangeServer) -> Iterator[DataServer]:
    server = DataServer(pass_on(exchange.url))
    server.page_rows = 50
    yield server
    server.stop()


@pytest.fixture
def start(proxy: DataServer, clean_environment: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def run(*options: str, keys: bool = True, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        credentials = {"ALPACA_API_KEY": "known", "ALPACA_SECRET_KEY": "hidden"} if keys else {}
        environment = {**os.environ, "ALPACA_DATA_URL": proxy.url, "PYTHONUNBUFFERED": "1", **credentials}
        command = [sys.executable, "-m", "dry_work", "download", *options]
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=clean_environment, stdout=stdout, stderr=subprocess.PIPE, text=True
            )
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def run(
    proxy: DataServer, clean_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command in this process, without credentials; return exit code, output and errors."""
    monkeypatch.setenv("ALPACA_DATA_URL", proxy.url)

    def run_here(*options: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["download", *options])
        assert isinstance(ended.value.code, int)
        return (ended.value.code, *capsys.readouterr())

    return run_here


def finish(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    assert "hidden" not in (out or "") + err
    return out, err


def wait_for_requests(proxy: DataServer, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(proxy.requests) < count:
        assert time.monotonic() < deadline, proxy.requests
        time.sleep(0.005)


def hold_page(proxy: DataServer, number: int) -> threading.Event:
    """Let the proxy hold back the answer to a request until the event is set."""
    held = threading.Event()
    proxy.faults.extend([None] * (number - 1) + [held])
    return held


def check(folder: Path, exchange: ExchangeServer, symbols: list[str]) -> None:
    found = read_bars([folder])
    assert sorted(found.symbols) == sorted(symbols)
    for symbol in symbols:
        for name, column in found.columns(symbol).items():
            assert column.tobytes() == exchange.recording.columns(symbol)[name].tobytes(), (symbol, name)


def test_a_killed_download_goes_on_at_its_page(
    start: Start, proxy: DataServer, exchange: ExchangeServer, tmp_path: Path
) -> None:
    pages = -(-exchange.recording.count("SPY") // 50)
    held = hold_page(proxy, pages + 3)  # the third page of the second symbol
    options = ("--symbols", "SPY,IBM,BTC/USD", *PERIOD)
    process = start(*options)
    wait_for_requests(proxy, pages + 3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    held.set()
    asked = proxy.requests[-1]
    out, err = finish(start(*options), 0)
    assert err == ""
    assert "1m bars of 3 symbols into data: 2 units to download, 1 there, about 2 requests" in out
    assert proxy.requests[pages + 3] == asked  # the page that was on its way, not those before it
    everything = [(query["symbols"], query.get("page_token")) for _, query in proxy.requests]
    assert len(everything) - len(set(everything)) == 1
    check(tmp_path / "data", exchange, ["SPY", "IBM", "BTC/USD"])
    before = len(proxy.requests)
    assert "1m bars of 3 symbols: all there in data" in finish(start(*options), 0)[0]
    assert len(proxy.requests) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_word_to_stop_ends_it_after_the_page(
    start: Start, proxy: DataServer, exchange: ExchangeServer, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    held = hold_page(proxy, 2)
    process = start("--symbols", "SPY,IBM", *PERIOD)
    wait_for_requests(proxy, 2)
    process.send_signal(number)
    held.set()  # the signal is pending before the answer is there
    out, err = finish(process, code)
    assert "stopped: 0 of 2 units done, 100 rows in " in out
    assert "the same command goes on from here" in out
    assert err == ""
    assert len(proxy.requests) == 2
    finish(start("--symbols", "SPY,IBM", *PERIOD), 0)
    check(tmp_path / "data", exchange, ["SPY", "IBM"])


def test_a_long_wait_ends_at_once_at_the_word_to_stop(start: Start, proxy: DataServer) -> None:
    proxy.faults.append((429, b'{"message": "too many requests."}', {"Retry-After": "300"}))
    process = start("--symbols", "SPY", *PERIOD)
    wait_for_requests(proxy, 1)
    process.send_signal(signal.SIGINT)
    begun_s = time.monotonic()
    out, _ = finish(process, 130)
    assert time.monotonic() - begun_s < DEADLINE_S / 2
    assert "stopped: 0 of 1 units done" in out


def test_on_a_terminal_it_draws_a_bar(start: Start, exchange: ExchangeServer, tmp_path: Path) -> None:
    control, side = pty.openpty()
    try:
        process = start("--symbols", "SPY,IBM,BTC/USD", *PERIOD, stdout=side)
        os.close(side)
        drawn = b""
        with open(control, "rb", closefd=False, buffering=0) as terminal:
            while True:
                try:
                    piece = terminal.read(65536)
                except OSError:  # the other side is closed
                    break
                if not piece:
                    break
                drawn += piece
        finish(process, 0)
    finally:
        os.close(control)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert "3/3" in text
    assert re.search(r"[\d,]+ rows, [\d,]+/s", text)
    assert "downloaded: " in text
    check(tmp_path / "data", exchange, ["SPY", "IBM", "BTC/USD"])


def test_a_dry_run_asks_nothing_and_writes_nothing(run: Run, proxy: DataServer, tmp_path: Path) -> None:
    (tmp_path / "symbols.txt").write_text("SPY\nbtc/usd\n")
    code, out, _ = run("--start", "2024-01-15", "--end", "2024-03-02", "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        "1m bars of 2 symbols into data: 6 units to download, about 13 requests",
        "  SPY 1m bars 2024-01-15 to 2024-01-31",
        "  SPY 1m bars 2024-02-01 to 2024-02-29",
        "  SPY 1m bars 2024-03-01 to 2024-03-02",
        "  BTC/USD 1m bars 2024-01-15 to 2024-01-31",
        "  BTC/USD 1m bars 2024-02-01 to 2024-02-29",
        "  BTC/USD 1m bars 2024-03-01 to 2024-03-02",
    ]
    code, out, _ = run("--symbols", "SPY", "--kind", "trades", "--end", "2024-03-02", "--days", "30", "--dry-run")
    assert code == 0
    assert "trades of 1 symbol into data: 30 units to download, at least 30 requests" in out
    assert out.splitlines()[-1] == "  and 10 more"
    assert proxy.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["symbols.txt"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--symbols", "SPY"), "give --start or --days, one of them"),
        (("--symbols", "SPY!", "--days", "1"), "neither a file nor a comma list of symbols"),
        (("--symbols", "SPY", "--start", "tomorrow"), "--start 'tomorrow': expected a date such as 2024-01-31"),
        (("--symbols", "SPY", "--days", "1", "--feed", "otc"), "'otc' is not one of 'sip', 'iex', 'delayed_sip'"),
        (("--symbols", "AAPL240315C00172500", "--days", "1", "--kind", "quotes"), "no history of quotes of options"),
        (("--symbols", "SPY", "--days", "1", "--out", "ftp://x"), "ftp://x: is neither a folder nor an address"),
        (("--symbols", "SPY", "--days", "1"), "no Alpaca credentials: set ALPACA_API_KEY and ALPACA_SECRET_KEY"),
    ],
)
def test_mistakes_are_told_in_a_sentence(run: Run, proxy: DataServer, options: tuple[str, ...], sentence: str) -> None:
    code, _, err = run(*options)
    assert code == 2
    assert sentence in err
    assert proxy.requests == []


def test_crypto_needs_no_credentials(run: Run, exchange: ExchangeServer, tmp_path: Path) -> None:
    assert run("--symbols", "BTC/USD", *PERIOD, "--out", "coins")[0] == 0
    check(tmp_path / "coins", exchange, ["BTC/USD"])


def test_a_refused_symbol_is_told_at_the_end(
    start: Start, proxy: DataServer, exchange: ExchangeServer, tmp_path: Path
) -> None:
    proxy.faults.append((400, b'{"message": "invalid symbol: SPY"}', {}))
    out, err = finish(start("--symbols", "SPY,IBM", *PERIOD), 2)
    assert "downloaded: " in out
    assert "Alpaca refused 1 of 2 symbols:" in err
    assert f"SPY 1m bars {DAY}: invalid symbol: SPY (HTTP 400)" in err
    check(tmp_path / "data", exchange, ["IBM"])


def test_two_at_once_into_one_place_are_refused(start: Start, proxy: DataServer) -> None:
    held = hold_page(proxy, 1)
    first = start("--symbols", "SPY", *PERIOD)
    wait_for_requests(proxy, 1)
    _, err = finish(start("--symbols", "IBM", *PERIOD), 2)
    assert "another download into the same place is running" in err
    held.set()
    finish(first, 0)
