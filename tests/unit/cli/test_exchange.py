"""`dry-work exchange` as a process."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import find_free_port

DEADLINE_S = 60.0
PROGRAM = (sys.executable, "-c", "from dry_work.cli import main; main()", "exchange")

Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PROGRAM, *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_prints_its_urls_shows_progress_and_sums_up_when_stopped(
    launch: Launch, number: signal.Signals, code: int
) -> None:
    process = launch("--port", "0", "--speed", "max", "--key", "id:secret")
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(
        r"export ALPACA_URL=(http://127\.0\.0\.1:\d+) ALPACA_DATA_URL=\1 ALPACA_STREAM_URL=(\S+)\n", line
    )
    assert found, line
    assert found[2] == found[1].replace("http", "ws")
    with urllib.request.urlopen(f"{found[1]}/dry-work/v1/session", timeout=DEADLINE_S) as answer:
        assert b'"rules":"alpaca"' in answer.read()
    assert process.stdout.readline().startswith("market waits after slice 0 of 390")
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (code, "")
    assert "stopped after slice 0 of 390 (waiting)" in out


def test_the_ids_of_sub_accounts_are_printed_when_they_are_asked_for(launch: Launch) -> None:
    process = launch("--port", "0", "--speed", "max", "--key", "id:secret", "--accounts", "2")
    assert process.stdout is not None
    url = process.stdout.readline().split()[1].partition("=")[2]
    printed = [
        re.fullmatch(r"Broker API: ALPACA_ACCOUNT_ID=(\S+) with key id\n", process.stdout.readline()) for _ in "12"
    ]
    credentials = base64.b64encode(b"id:secret").decode()
    request = urllib.request.Request(f"{url}/v1/accounts?sort=asc", headers={"Authorization": f"Basic {credentials}"})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert [row["id"] for row in json.load(answer)] == [found and found[1] for found in printed]


def test_recorded_bars_are_played_to_their_end(launch: Launch, tmp_path: Path) -> None:
    rows = [f"SPY,2024-06-11T13:3{minute}:00Z,10,11,9,10.5,100" for minute in range(5)]
    (tmp_path / "bars.csv").write_text("\n".join(["symbol,timestamp,open,high,low,close,volume", *rows, rows[0]]))
    process = launch("--port", "0", "--speed", "60000", "--data", "bars.csv", "--rules", "backtrader")
    assert process.stdout is not None
    lines = []
    while not lines or "ended" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    assert any(line.startswith("data: ") and "duplicate" in line for line in lines)
    assert "slice 5 of 5, exchange time 2024-06-11T13:35:00Z" in lines[-1]


def test_the_end_of_the_market_is_told_once_also_when_the_stop_comes_at_once(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "bars.csv").write_text(
        "symbol,timestamp,open,high,low,close,volume\nSPY,2024-06-11T13:30:00Z,10,11,9,10.5,100\n"
    )
    process = launch("--port", "0", "--speed", "60000", "--data", "bars.csv")
    assert process.stdout is not None
    url = re.search(r"ALPACA_URL=(\S+)", process.stdout.readline())
    assert url
    end = time.monotonic() + DEADLINE_S
    state = b""
    while b'"state":"ended"' not in state:
        assert time.monotonic() < end
        with urllib.request.urlopen(f"{url[1]}/dry-work/v1/session", timeout=DEADLINE_S) as answer:
            state = answer.read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    assert out.count("market ended: slice 1 of 1") == 1


def test_a_killed_exchange_goes_on_in_its_state_directory(launch: Launch, tmp_path: Path) -> None:
    options = ("--port", "0", "--speed", "max", "--state-dir", "state")
    process = launch(*options)
    assert process.stdout is not None
    url = re.search(r"ALPACA_URL=(\S+)", process.stdout.readline())
    assert url
    request = urllib.request.Request(
        f"{url[1]}/v2/orders",
        data=b'{"symbol":"BTC/USD","side":"buy","type":"market","qty":"0.1","time_in_force":"gtc"}',
        headers={"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.status == 200
    second = launch(*options)
    _, err = second.communicate(timeout=DEADLINE_S)
    assert (second.returncode, "state is in use by another exchange" in err) == (2, True)
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    again = launch(*options)
    assert again.stdout is not None
    again.stdout.readline()
    assert again.stdout.readline() == "resumed from state in slice 0 of 390: 1 order requests, 0 fills so far\n"
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=DEADLINE_S)
    other = launch(*options, "--cash", "5")
    _, err = other.communicate(timeout=DEADLINE_S)
    assert (other.returncode, "was begun with --cash 100000, now 5" in err) == (2, True)


def test_trades_and_quotes_beside_the_bars_are_played(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "bars.csv").write_text(
        "symbol,timestamp,open,high,low,close,volume\nSPY,2024-06-11T13:30:00Z,10,11,9,10.5,100\n"
    )
    (tmp_path / "trades.csv").write_text(
        "symbol,timestamp,price,size\nSPY,2024-06-11T13:30:01Z,10.5,1\nSPY,2024-06-11T13:30:02Z,-1,1\n"
    )
    process = launch("--port", "0", "--speed", "60000", "--data", ".")
    assert process.stdout is not None
    line = process.stdout.readline()
    url = re.search(r"ALPACA_URL=(\S+)", line)
    assert url
    lines = []
    while not lines or "ended" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    assert any("1 row dropped: negative price or size" in line for line in lines)
    assert any("1 trades and quotes beside the bars" in line for line in lines)
    headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
    request = urllib.request.Request(f"{url[1]}/v2/stocks/trades?symbols=SPY", headers=headers)
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert b'"p":10.5' in answer.read()


def test_the_limits_of_a_plan_are_switched_on_by_options(launch: Launch) -> None:
    process = launch("--port", "0", "--requests-per-minute", "1", "--connections", "1", "--stream-symbols", "1")
    assert process.stdout is not None
    url = re.search(r"ALPACA_URL=(\S+)", process.stdout.readline())
    assert url
    headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
    request = urllib.request.Request(f"{url[1]}/v2/clock", headers=headers)
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.headers["X-RateLimit-Limit"] == "1"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=DEADLINE_S)
    assert refused.value.code == 429
    refused.value.close()


def test_faults_of_a_file_strike_from_the_start(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text('[{"on": "http", "kind": "status", "status": 504, "path": "/v2/clock"}]')
    process = launch("--port", "0", "--faults", str(path), "--matching", "volume", "--wash-trades")
    assert process.stdout is not None
    url = re.search(r"ALPACA_URL=(\S+)", process.stdout.readline())
    assert url
    headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
    request = urllib.request.Request(f"{url[1]}/v2/clock", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(request, timeout=DEADLINE_S)
    assert failed.value.code == 504
    failed.value.close()
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.status == 200


def test_a_port_in_use_is_a_usage_error_that_names_port_and_option(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch("--port", str(port))
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in err
    assert "--port" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--speed", "fast"), "--speed 'fast': expected a number above 0"),
        (("--speed", "nan"), "--speed 'nan': expected a number above 0"),
        (("--cash", "none"), "--cash 'none': expected an amount above 0"),
        (("--speed", "max", "--skip-gaps"), "--skip-gaps has no effect with --speed max"),
        (("--key", "topsecret"), "a --key is not usable: expected ID:SECRET"),
        (("--data", "missing.csv"), "missing.csv"),
        (("--symbols", "missing.txt"), "missing.txt: no such symbols file"),
        (("--speed", "max", "--consumers", "0"), "at least 1"),
        (("--rules", "house"), "'house' is not one of"),
        (("--stale-session", "90"), "--stale-session has no effect without --connections"),
        (("--connections", "0"), "0 is not in the range"),
        (("--races", "--rules", "backtrader"), "only the rule set alpaca"),
        (("--matching", "ticks", "--rules", "backtrader"), "only the rule set alpaca matches orders against ticks"),
        (("--faults", "missing.json"), "--faults missing.json cannot be read: No such file"),
        (("--faults", str(Path(__file__))), "test_exchange.py: no JSON"),
    ],
)
def test_a_mistake_is_a_usage_error_with_one_sentence(launch: Launch, options: tuple[str, ...], sentence: str) -> None:
    process = launch("--port", "0", *options)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert sentence in err
    assert "Traceback" not in err
    assert "topsecret" not in err


def test_after_a_kill_the_same_port_can_be_used_at_once(launch: Launch) -> None:
    port = find_free_port()
    first = launch("--port", str(port), "--speed", "max")
    assert first.stdout is not None
    line = first.stdout.readline()
    assert f":{port} " in line
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    first.kill()
    first.wait(DEADLINE_S)
    second = launch("--port", str(port), "--speed", "max")
    assert second.stdout is not None
    assert second.stdout.readline() == line
    connection.close()
