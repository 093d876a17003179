"""What a user sees who makes a mistake: one clear sentence, exit 2, no traceback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from .processes import Program

Start = Callable[..., Program]

HEADER = "symbol,timestamp,open,high,low,close,volume\n"
ROW = "SPY,2013-10-07T13:30:00Z,10,11,9,10,100\n"


def run_main(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    from dry_work.cli import main

    with pytest.raises(SystemExit) as caught:
        main(args)
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


@pytest.fixture
def folder(clean_environment: Path) -> Path:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    return clean_environment


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run"], "set ALPACA_API_KEY and ALPACA_SECRET_KEY, or try --local"),
        (["run", "--local", "--symbols", "nothing.txt"], "nothing.txt: no such symbols file"),
        (["run", "--local", "--agent", "nothing.py:X"], "nothing.py: no such file"),
        (["run", "--local", "--agent", "agents.sma_cross:Nothing"], "has no class 'Nothing'"),
        (["run", "--local", "-p", "fats=1"], "SmaCross has no parameter 'fats'; its parameters: fast_period"),
        (["run", "--local", "-p", "fast_period=x"], "expected a whole number"),
        (["run", "--local", "--data", "nothing.parquet"], "nothing.parquet"),
    ],
)
def test_a_mistake_on_the_command_line(
    folder: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_main(args, capsys)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "data.csv"),
        ("a,b\n1,2\n", "data.csv"),
        (HEADER, "data.csv"),
        (HEADER.replace("close,", "") + "SPY,2013-10-07T13:30:00Z,10,11,9,100\n", "close"),
        (HEADER + ROW.replace("SPY", "IBM"), "SPY"),
    ],
)
def test_a_data_file_that_cannot_be_used(
    folder: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data.csv").write_text(content)
    code, _, err = run_main(["run", "--local", "--data", "data.csv"], capsys)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_bad_rows_are_counted_and_reported_and_never_delivered(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ROW,
        ROW,  # duplicate
        "SPY,2013-10-07T13:32:00Z,10,11,9,nan,100\n",
        "SPY,2013-10-07T13:33:00Z,-10,11,9,10,100\n",
        "SPY,2013-10-07T13:35:00Z,10,11,9,10,100\n",
        "SPY,2013-10-07T13:34:00Z,10,11,9,10,100\n",  # out of order
    ]
    (folder / "data.csv").write_text(HEADER + "".join(rows))
    (folder / "watch.py").write_text(
        "import backtrader as bt, math\n"
        "class Watch(bt.Strategy):\n"
        "    def next(self):\n"
        "        assert not math.isnan(self.data.close[0])\n"
        "        print('bar', self.data.datetime.datetime().isoformat())\n"
    )
    code, out, _ = run_main(["run", "--local", "--data", "data.csv", "--agent", "watch.py:Watch"], capsys)
    assert code == 0
    bars = [line for line in out.splitlines() if line.startswith("bar ")]
    assert bars == [f"bar 2013-10-07T13:{minute}:00" for minute in (31, 35, 36)]
    for reason in ("duplicate", "non-finite price", "negative price", "out of order"):
        assert reason in out


def test_an_exception_in_the_strategy_is_shown_and_exits_with_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text(
        "import backtrader as bt\nclass Broken(bt.Strategy):\n    def next(self):\n        return 1 / 0\n"
    )
    code, _, err = run_main(["run", "--local", "--agent", "broken.py:Broken"], capsys)
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "broken.py" in err


def test_a_strategy_that_hangs_is_interrupted_after_the_word_to_stop(start: Start, folder: Path) -> None:
    import signal

    (folder / "hangs.py").write_text(
        "import backtrader as bt\n"
        "class Hangs(bt.Strategy):\n"
        "    def next(self):\n"
        "        print('in next', flush=True)\n"
        "        while True: pass\n"
    )
    program = start("run", "--local", "--agent", "hangs.py:Hangs")
    program.wait_for_line("in next")
    program.send(signal.SIGTERM)
    assert program.wait() == 0, program.output
    assert "interrupted" in program.output


@pytest.mark.parametrize("command", ["exchange", "pubsub"])
def test_a_port_in_use_is_named(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run_main([command, "--port", str(port)], capsys)
    assert code == 2
    assert str(port) in err
    assert "--port" in err


def test_the_same_agent_id_twice_is_refused(start: Start, folder: Path) -> None:
    env = {"AGENT_ID": "twice"}
    first = start("run", "--local", "--speed", "60", env=env)
    first.wait_for_line(r" bars  \d+ orders")
    second = start("run", "--local", env=env)
    assert second.wait() == 2
    assert "twice" in second.output
    assert str(first.process.pid) in second.output
    assert "Traceback" not in second.output


def test_an_exchange_that_is_not_there_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "not-a-secret", "GOOGLE_CLOUD_PROJECT": "p",
        "ALPACA_URL": f"http://127.0.0.1:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    code, _, err = run_main(["run"], capsys)
    assert code == 1
    assert f"http://127.0.0.1:{port} does not answer" in err
    assert "not-a-secret" not in err
    assert os.environ["ALPACA_API_KEY"] not in err
