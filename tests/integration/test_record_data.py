"""`dry-work data`: what is there, what is missing, what is damaged; and the recorder's view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from dry_work.cli.data import command as data_command
from dry_work.cli.record_view import render
from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.market.messages import Bar
from dry_work.recording.catalog import CatalogWriter
from dry_work.recording.inventory import take_inventory
from dry_work.recording.log import find_segments, find_sessions
from dry_work.recording.recorder import RecordedMessage, Recorder
from dry_work.recording.session import SymbolTally, Tally
from dry_work.storage import FolderStorage
from dry_work.wire.pubsub import encode_bar

OPEN_NS = 1_718_112_600 * SECOND_NS  # 2024-06-11 13:30 UTC, when New York opens
DAY_NS = 86_400 * SECOND_NS


def bars(first_ns: int, count: int, step_ns: int = MINUTE_NS) -> dict[str, Any]:
    times = np.arange(count, dtype=np.int64) * step_ns + first_ns
    return {"ts_event_ns": times, **{name: np.ones(count) for name in ("open", "high", "low", "close", "volume")}}


def write_catalog(root: Path) -> None:
    catalog = CatalogWriter(FolderStorage(root))
    catalog.add("bars", "SPY", bars(OPEN_NS, 390))
    catalog.add("bars", "SPY", bars(OPEN_NS + 2 * DAY_NS, 100))
    catalog.add("bars", "SPY", bars(OPEN_NS + 2 * DAY_NS + 110 * MINUTE_NS, 280))
    catalog.add("bars", "BTC/USD", bars(OPEN_NS, 60))
    catalog.add("bars", "SPY", bars(OPEN_NS // DAY_NS * DAY_NS + DAY_NS // 6, 3, DAY_NS), timeframe="1d")
    catalog.add("trades", "SPY", {"ts_event_ns": [OPEN_NS, OPEN_NS + 5], "price": [1, 1], "size": [2, 2]})
    catalog.flush()


def write_log(root: Path, count: int = 5) -> Path:
    recorder = Recorder(root, writer="record", facts={"symbols": ["IBM"]})
    recorder.start()
    for minute in range(count):
        bar = Bar(symbol="IBM", ts_event_ns=OPEN_NS + minute * MINUTE_NS, open=1, high=1, low=1, close=1, volume=1)
        data, attributes = encode_bar(bar)
        message = RecordedMessage("market-data", data, attributes)
        recorder.record(message, venue_ns=0, recv_ns=OPEN_NS + DAY_NS + minute * MINUTE_NS)
    recorder.stop()
    assert recorder.folder is not None
    return recorder.folder


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(data_command, [str(arg) for arg in args], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def test_a_catalog_is_listed_with_its_gaps(clean_environment: Path) -> None:
    write_catalog(clean_environment / "recordings")
    result = run()
    assert result.return_value == 0
    assert [line.rstrip() for line in result.output.splitlines()] == [
        "Recordings",
        "┏━━━━━━━━━┳━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━━┓",
        "┃ kind    ┃ symbol  ┃ rows ┃ from (UTC) ┃         to ┃   days ┃ missing bars ┃",
        "┡━━━━━━━━━╇━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━━┩",
        "│ bars 1m │ BTC/USD │   60 │ 2024-06-11 │ 2024-06-11 │      1 │            0 │",
        "│ bars 1d │ SPY     │    3 │ 2024-06-11 │ 2024-06-13 │      3 │              │",
        "│ bars 1m │ SPY     │  770 │ 2024-06-11 │ 2024-06-13 │ 2 of 3 │    10 (1.3%) │",
        "│ trades  │ SPY     │    2 │ 2024-06-11 │ 2024-06-11 │      1 │              │",
        "└─────────┴─────────┴──────┴────────────┴────────────┴────────┴──────────────┘",
        "SPY 1m: missing days: 2024-06-12",
        "SPY 1m: largest gaps: 2024-06-13 15:10–15:19 (10 minutes)",
    ]


def test_the_json_form_has_all_of_it(clean_environment: Path) -> None:
    write_catalog(clean_environment / "recordings")
    found = json.loads(run("recordings", "--json").output.splitlines()[-1])
    assert found["logs"] == []
    assert found["damaged"] == []
    assert [(held["kind"], held["symbol"], held["timeframe"], held["files"]) for held in found["recordings"]] == [
        ("bars", "BTC/USD", "1m", 1),
        ("bars", "SPY", "1d", 1),
        ("bars", "SPY", "1m", 2),
        ("trades", "SPY", None, 1),
    ]
    assert found["recordings"][2] == {
        "kind": "bars",
        "symbol": "SPY",
        "timeframe": "1m",
        "files": 2,
        "rows": 770,
        "first": "2024-06-11T13:30:00Z",
        "last": "2024-06-13T19:59:00Z",
        "days": 2,
        "missing_days": ["2024-06-12"],
        "expected_bars": 780,
        "missing_bars": 10,
        "largest_gaps": [{"first": "2024-06-13T15:10:00Z", "last": "2024-06-13T15:19:00Z", "bars": 10}],
    }


def test_files_that_are_no_catalog_are_listed_by_what_is_in_them(tmp_path: Path) -> None:
    times = pd.date_range("2024-06-11 13:30", periods=4, freq="5min", tz="UTC")
    prices = {name: [1.0] * 8 for name in ("open", "high", "low", "close", "volume")}
    frame = pd.DataFrame({"symbol": ["SPY"] * 4 + ["btc/usd"] * 4, "timestamp": [*times, *times], **prices})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.set_index(["symbol", "timestamp"]).to_parquet(tmp_path / "b.parquet")
    found = take_inventory([str(tmp_path)])
    assert [(held.symbol, held.frame, held.files, held.rows) for held in found.holdings] == [
        ("BTC/USD", "5m", 2, 8),
        ("SPY", "5m", 2, 8),
    ]
    assert found.damaged == ()
    once = take_inventory([str(tmp_path / "a.csv"), f"{tmp_path}/*.csv", str(tmp_path)])
    assert once.holdings == found.holdings, "each file once"


def test_damaged_files_are_named_and_everything_else_is_listed(clean_environment: Path) -> None:
    write_catalog(clean_environment / "recordings")
    broken = clean_environment / "recordings/bars/1m/SPY/2024-06-13.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    (clean_environment / "recordings/other.csv").write_text("a,b\n1,2\n")
    (clean_environment / "recordings/rows.csv").write_text(
        "symbol,timestamp,open,high,low,close,volume\nSPY,soon,1,1,1,1,1\nIBM,2024-06-11T13:30:00Z,1,1,1,1,1\n"
    )
    result = run("--json")
    assert result.return_value == 1
    *_, first, second, third, last = result.output.splitlines()
    assert first.startswith("damaged: recordings/bars/1m/SPY/2024-06-13.parquet: cannot be read as Parquet: ")
    assert second == ("damaged: recordings/other.csv: holds neither bars nor trades nor quotes; its columns: a, b")
    assert third == "damaged: recordings/rows.csv: 1 rows have no symbol or no time that can be read"
    found = json.loads(last)
    assert [held["symbol"] for held in found["recordings"]] == ["BTC/USD", "IBM", "SPY", "SPY", "SPY"]
    assert len(found["damaged"]) == 3


def test_logs_are_listed_and_damage_in_them_is_told(clean_environment: Path) -> None:
    whole = write_log(clean_environment / "state/recordings")
    cut = write_log(clean_environment / "state/recordings")
    spoiled = write_log(clean_environment / "state/recordings")
    path = find_segments(cut)[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert run("state").return_value == 0, "a recorder that was killed is no damage"
    path = find_segments(spoiled)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    result = run("state", "--json")
    assert result.return_value == 1
    assert "Logs in state/recordings" in result.output
    logs = {log["folder"]: log for log in json.loads(result.output.splitlines()[-1])["logs"]}
    facts = [logs[str(each.relative_to(clean_environment))] for each in (whole, cut, spoiled)]
    assert [(log["messages"], log["closed"], log["damaged"]) for log in facts] == [
        (5, True, False),
        (4, False, False),
        (2, False, True),
    ]
    assert facts[0]["first"] == "2024-06-12T13:30:00Z"
    assert f"damaged: {find_segments(spoiled)[0].relative_to(clean_environment)}, byte " in result.output


def test_logs_are_brought_into_the_catalog_on_demand(clean_environment: Path) -> None:
    write_log(clean_environment / ".dry-work/me-record/recordings")
    result = run("--compact", ".dry-work")
    lines = result.output.splitlines()
    assert lines[:2] == [
        "1 recorded session: 5 messages, 5 bars",
        "catalog: 5 new bars; 1 files written, 0 unchanged",
    ]
    assert "│ bars 1m │ IBM    │    5 │ 2024-06-11 13:30 │ 13:34 │    1 │            0 │" in lines
    again = run("recordings", "--compact", ".dry-work", "--compact", ".dry-work/me-record")
    assert again.output.splitlines()[1] == "catalog: 0 new bars; 0 files written, 1 unchanged"
    assert find_sessions(clean_environment / ".dry-work")


def test_what_is_not_there_is_told(clean_environment: Path) -> None:
    with pytest.raises(ConfigError, match="recordings: no such file or folder"):
        run()
    (clean_environment / "empty").mkdir()
    with pytest.raises(ConfigError, match="no recordings in this folder"):
        run("empty")
    with pytest.raises(ConfigError, match=r"--compact empty: no logs \(\*\.dwlog\) below this folder"):
        run("--compact", "empty")
    with pytest.raises(ConfigError, match="goes with one PATH"):
        run("a", "b", "--compact", "empty")


def draw(tally: Tally, *, height: int) -> str:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(tally, now_ns=OPEN_NS + 65 * SECOND_NS, height=height))
    return captured.get()


def test_the_view_shows_what_arrives() -> None:
    bar = Bar(
        symbol="SPY",
        ts_event_ns=OPEN_NS,
        open=540,
        high=541,
        low=539,
        close=540.25,
        volume=12_345,
        ts_recv_ns=OPEN_NS + 60 * SECOND_NS,
    )
    tally = Tally(symbols={"SPY": SymbolTally(bars=7, last=bar), "BTC/USD": SymbolTally()}, recorded=12)
    text = draw(tally, height=24)
    assert "│ SPY     │    7 │ 2024-06-11 13:30 │ 540.25 │ 12,345 │  5s │" in text
    assert "│ BTC/USD │    0 │                  │        │        │     │" in text
    assert "12 messages, 0.0 MB in the log; Ctrl-C stops" in text
    assert "not recorded" not in text
    tally.not_recorded = 3
    tally.status = "connection to Pub/Sub lost"
    text = draw(tally, height=24)
    assert "3 messages are not recorded" in text
    assert "connection to Pub/Sub lost" in text


def test_when_not_all_symbols_fit_those_that_came_last_are_shown() -> None:
    symbols = {f"A{number}": SymbolTally() for number in range(30)}
    bar = Bar(symbol="A29", ts_event_ns=OPEN_NS, open=1, high=1, low=1, close=1, volume=1, ts_recv_ns=OPEN_NS)
    symbols["A29"] = SymbolTally(bars=1, last=bar)
    text = draw(Tally(symbols=symbols), height=13)
    assert "│ A29 " in text
    assert "and 25 symbols more" in text
    assert len(text.splitlines()) <= 13
