"""A trader in lock-step is killed while a slice is open, again and again: each slice is decided once all the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kill_run import LIFE_S, Stage
from tests.faults.programs import Program
from tests.faults.replay_matrix import replay_all

AGENT = Path(__file__).with_name("decider.py")
SLICES = 40
SYMBOLS = ("IBM", "SPY")
KILLED = (-9, 255)  # the fork server does not always get to tell which signal it was
# Of each order, what does not tell by which process it was sent.
FIELDS = (
    "submitted_at", "symbol", "side", "type", "qty", "limit_price", "status", "filled_at", "filled_qty",
    "filled_avg_price", "canceled_at",
)  # fmt: skip
# Each kills one life of a trader; numbers count within it. `strategy.json` is written first before any slice.
KILLS = (
    "file strategy.json before #3",  # within slice 2: it was decided, and nobody knows
    "file strategy.json after #5",  # decided, and no order of it has left
    "journal intents+order_terms after #6",  # an order of it is about to leave
    "POST /v2/orders sent #7",  # one may have arrived
    "POST /v2/orders answered #4",  # one is there, others are not
    "DELETE /v2/orders/{id} before #1",  # a cancellation has not left
    "POST /dry-work/v1/slices/{n}/done before #3",  # all have left, and the exchange waits
    "POST /dry-work/v1/slices/{n}/done answered #2",  # and the market has moved on
)

LAST_REPORT = f"POST /dry-work/v1/slices/{{n}}/done before #{SLICES}"


@pytest.fixture
def pubsub(tmp_path: Path) -> Iterator[str]:
    program = Program("pubsub", "--port", "0", folder=tmp_path, log="pubsub.log")
    try:
        yield program.wait_for_line(r"PUBSUB_EMULATOR_HOST=(\S+)")[1]
    finally:
        program.close()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Random walks; IBM has no bar in some minutes."""
    rng = random.Random(5)
    rows = ["symbol,timestamp,open,high,low,close,volume"]
    for symbol in SYMBOLS:
        price = 100.0
        for minute in range(SLICES):
            opened, price = price, round(price + rng.uniform(-0.6, 0.6), 2)
            if symbol == "IBM" and rng.random() < 0.2:
                continue
            high, low = round(max(opened, price) + 0.1, 2), round(min(opened, price) - 0.1, 2)
            hour, rest = divmod(13 * 60 + 30 + minute, 60)
            rows.append(f"{symbol},2024-06-11T{hour:02}:{rest:02}:00Z,{opened},{high},{low},{price},500")
    path = tmp_path / "market.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def run(folder: Path, strategy: str, kills: Sequence[str], *, recording: Path, pubsub: str) -> dict[str, Any]:
    """Run a trader through the recording, killed at these boundaries; return what it and the venue are left with."""
    stage = Stage(
        folder, recording=recording, pubsub=pubsub, market="lockstep", symbols=SYMBOLS, rules=("--rules", "backtrader")
    )
    args = ["run", "--symbols", "symbols.txt", "--agent", f"{AGENT}:{strategy}", "--warmup", "500", "--plain"]
    try:
        stage.start()
        for life, kill in enumerate([*kills, ""]):
            trader = Program(*args, folder=folder, log=f"trader-{life}.log", env=stage.env, kill_at=kill)
            try:
                code = trader.wait(LIFE_S)
            finally:
                trader.close()
            assert code in (KILLED if kill else (0,)), f"life {life}, killed at {kill!r}: {code}\n{trader.output}"
        orders = stage.ask("/v2/orders?status=all&limit=500&direction=asc")
        account = stage.ask("/v2/account")
        return {
            "orders": [[order[name] for name in FIELDS] for order in orders],
            "ids": sorted(order["client_order_id"] for order in orders),
            "account": [account["cash"], account["equity"]],
            "positions": [
                [each["symbol"], each["qty"], each["avg_entry_price"]] for each in stage.ask("/v2/positions")
            ],
            "fills": [
                [row[name] for name in ("transaction_time", "symbol", "side", "qty", "price")]
                for row in stage.ask("/v2/account/activities/FILL?page_size=100&direction=asc")
            ],
            "own": json.loads((folder / "end.json").read_text()),
        }
    finally:
        stage.close()


@pytest.mark.slow
@pytest.mark.timeout(600)  # many processes, and the machine may be busy
@pytest.mark.parametrize(("strategy", "kills"), [("Diarist", KILLS), ("Decider", KILLS[1::2])])
def test_a_trader_killed_with_a_slice_open_decides_on_it_once(
    tmp_path: Path, recording: Path, pubsub: str, strategy: str, kills: tuple[str, ...]
) -> None:
    peace = run(tmp_path / "peace", strategy, (), recording=recording, pubsub=pubsub)
    killed = run(tmp_path / "killed", strategy, kills, recording=recording, pubsub=pubsub)
    at_the_end = run(tmp_path / "end", strategy, (LAST_REPORT,), recording=recording, pubsub=pubsub)
    assert len(peace["orders"]) > SLICES
    assert len(peace["fills"]) > SLICES / 2
    if strategy == "Diarist":
        assert len(peace["own"]["slices"]) == SLICES
    for found in (killed, at_the_end):
        for what in ("orders", "fills", "positions", "account", "own"):
            assert found[what] == peace[what], what
        assert len(set(found["ids"])) == len(found["ids"])
    # What each life has decided follows from its recording.
    assert [verdict.wrong for verdict in replay_all(tmp_path / "killed") if verdict.wrong] == []
