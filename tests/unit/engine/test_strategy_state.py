from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.broker.told import ToldOrder, ToldRecord
from dry_work.clock import ManualClock
from dry_work.engine.strategy_state import StrategyKeeper, check_state, keeps_by_slice
from dry_work.errors import ConfigError, StrategyError
from dry_work.orders.lifecycle import Phase


class Counter:
    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.saves = 0

    def save_state(self) -> Any:
        self.saves += 1
        return self.state

    def load_state(self, state: Any) -> None:
        self.state = state


def keeper(path: Path, agent: str = "agent:Counter", clock: Any = None) -> StrategyKeeper:
    return StrategyKeeper(path / "strategy.json", agent=agent, clock=clock or ManualClock())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(state=plain)
def test_what_was_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    folder = tmp_path_factory.mktemp("state")
    first = keeper(folder)
    assert first.load(Counter(state)) == ""
    first.save()
    restarted = Counter()
    told = keeper(folder).load(restarted)
    if (folder / "strategy.json").exists():
        assert told == "state of agent:Counter loaded"
    assert restarted.state == state
    assert type(restarted.state) is type(state)


def test_nan_comes_back_too(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    first.load(Counter({"last": math.nan}))
    first.save()
    restarted = Counter()
    keeper(tmp_path).load(restarted)
    assert math.isnan(restarted.state["last"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"pairs": [(1, 2)]}, r"save_state\(\)\['pairs'\]\[0\] is a tuple; kept are None, bool"),
        ({1: "a"}, r"save_state\(\): the key 1 is a int"),
        ({"a": {"b": {3}}}, r"\['a'\]\['b'\] is a set"),
        (object(), r"save_state\(\) is a object"),
    ],
)
def test_what_would_not_come_back_is_refused_by_its_place(state: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        check_state(state)


def test_it_is_written_at_once_for_orders_and_otherwise_once_a_second(tmp_path: Path) -> None:
    clock = ManualClock()
    strategy = Counter(1)
    kept = keeper(tmp_path, clock=clock)
    kept.load(strategy)
    kept.after_slice(0)
    assert strategy.saves == 1
    kept.after_slice(0)
    assert strategy.saves == 1
    kept.after_slice(1)
    assert strategy.saves == 2
    clock.advance(1.0)
    kept.after_slice(1)
    assert strategy.saves == 3


def test_a_strategy_without_save_state_keeps_nothing(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    assert kept.load(object()) == ""
    kept.after_slice(5)
    kept.save()
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_another_strategy_is_left_aside(tmp_path: Path) -> None:
    first = keeper(tmp_path, agent="old:Agent")
    first.load(Counter(7))
    first.save()
    strategy = Counter()
    told = keeper(tmp_path).load(strategy)
    assert told == "the state kept is that of old:Agent: left aside as strategy-of-another.json"
    assert strategy.state is None
    assert json.loads((tmp_path / "strategy-of-another.json").read_text())["state"] == 7


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2, "agent": "x", "state": 1}', "\x00"])
def test_a_file_that_is_no_state_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "strategy.json").write_text(content)
    with pytest.raises(ConfigError, match=r"strategy.json: .*move the file away to start without it"):
        keeper(tmp_path).load(Counter())


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    kept = StrategyKeeper(tmp_path / "gone" / "strategy.json", agent="a", clock=ManualClock())
    kept.load(Counter(1))
    with pytest.raises(StrategyError, match=r"the strategy's state cannot be written: No such file or directory"):
        kept.save()


class Telling:
    """What was told, as a broker keeps it."""

    def __init__(self) -> None:
        self.has_untold_changes = False
        self.given: Any = None
        self.heard: list[Any] = []
        self.record = ToldRecord()
        self.released = 0
        self.written_at_release: list[bool] = []
        self.path: Path | None = None

    def keep_told(self, record: ToldRecord | None) -> None:
        self.given = record

    def note_told(self, notification: Any) -> None:
        self.heard.append(notification)
        self.has_untold_changes = True

    def told_record(self) -> ToldRecord:
        self.has_untold_changes = False
        return self.record

    def release_orders(self) -> None:
        assert self.path is not None
        self.released += 1
        self.written_at_release.append(self.path.exists())


class Hearing(Counter):
    def __init__(self, state: Any = None) -> None:
        super().__init__(state)
        self.heard: list[Any] = []

    def notify_order(self, order: Any) -> None:
        self.heard.append(order)


def test_what_was_told_is_written_with_the_state_before_orders_leave(tmp_path: Path) -> None:
    telling, strategy = Telling(), Hearing({"n": 1})
    telling.path = tmp_path / "strategy.json"
    kept = keeper(tmp_path)
    kept.follow(telling, Hearing)
    assert telling.given is None
    kept.load(strategy)
    kept.after_turn()
    assert telling.released == 0, "nothing was told or decided"
    strategy.notify_order("order")
    assert (strategy.heard, telling.heard) == (["order"], ["order"])
    told = ToldOrder(phase=Phase.PARTIAL, filled=Decimal("0.1"))
    telling.record = ToldRecord(numbers={"s": 7}, orders={"dw-a-s-7": told})
    kept.after_turn()
    assert telling.written_at_release == [True]
    content = json.loads(telling.path.read_text())
    assert content["state"] == {"n": 1}
    assert content["orders"] == {
        "numbers": {"s": 7}, "orders": {"dw-a-s-7": {"phase": "partial", "filled": "0.1"}},
    }  # fmt: skip
    after = Telling()
    keeper(tmp_path).follow(after, Hearing)
    assert after.given == telling.record


def test_what_another_strategy_was_told_is_left_aside(tmp_path: Path) -> None:
    telling = Telling()
    telling.path = tmp_path / "strategy.json"
    kept = keeper(tmp_path)
    kept.follow(telling, Hearing)
    kept.load(Hearing({"n": 1}))
    kept.save()
    other = Telling()
    keeper(tmp_path, agent="agent:Other").follow(other, Hearing)
    assert other.given is None


def test_a_strategy_that_keeps_nothing_is_not_followed(tmp_path: Path) -> None:
    class Forgetful:
        pass

    telling = Telling()
    telling.given = "untouched"
    keeper(tmp_path).follow(telling, Forgetful)
    assert telling.given == "untouched"


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    content = {"version": 1, "agent": "agent:Counter", "saved_ns": 1, "state": {}, "orders": {"numbers": {"s": "x"}}}
    (tmp_path / "strategy.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="what the strategy was told of its orders cannot be read"):
        keeper(tmp_path).follow(Telling(), Hearing)


# Slices, in lock-step


def by_slice(folder: Path, agent: str = "agent:Counter") -> StrategyKeeper:
    return StrategyKeeper(folder / "strategy.json", agent=agent, clock=ManualClock(), by_slice=True)


def follow(kept: StrategyKeeper, strategy: Any) -> Telling:
    telling = Telling()
    telling.path = kept._path
    kept.follow(telling, type(strategy))
    return telling


class Stateless:
    def notify_order(self, order: Any) -> None:
        pass


@pytest.mark.parametrize("strategy", [Hearing({"n": 1}), Stateless()])
def test_in_lock_step_each_slice_is_written_before_its_orders_leave(tmp_path: Path, strategy: Any) -> None:
    kept = by_slice(tmp_path)
    telling = follow(kept, strategy)
    kept.load(strategy)
    for number in (1, 2):
        kept.after_slice(number)  # orders alone write nothing: the turn may not be over
        kept.after_turn()
        assert telling.released == number - 1
        kept.note_decided(number, number * 60)
        assert json.loads(kept._path.read_text())["slice"] == {"number": number, "end_ns": number * 60}
    assert telling.written_at_release == [True, True]
    after = by_slice(tmp_path)
    assert follow(after, strategy).given == ToldRecord()
    assert after.is_decided(2, 120)
    assert not after.is_decided(1, 60)
    assert after.load(strategy) == ("state of agent:Counter loaded" if isinstance(strategy, Hearing) else "")


@pytest.mark.parametrize("owed", [(0, 0), (2, 121), (3, 180), (1, 60)])
def test_a_decision_on_a_slice_that_nobody_waits_for_is_forgotten(tmp_path: Path, owed: tuple[int, int]) -> None:
    kept = by_slice(tmp_path)
    follow(kept, Stateless())
    kept.load(Stateless())
    kept.note_decided(2, 120)
    same, other = by_slice(tmp_path), by_slice(tmp_path)
    for after in (same, other):
        follow(after, Stateless())
        after.load(Stateless())
    same.take_up(2, 120)
    assert same.is_decided(2, 120)
    other.take_up(*owed)
    assert not other.is_decided(2, 120)
    other.save()
    assert json.loads((tmp_path / "strategy.json").read_text())["slice"] is None


def test_a_decision_of_another_strategy_is_none_of_ours(tmp_path: Path) -> None:
    kept = by_slice(tmp_path, "agent:Other")
    follow(kept, Stateless())
    kept.load(Stateless())
    kept.note_decided(2, 120)
    after = by_slice(tmp_path)
    follow(after, Stateless())
    assert not after.is_decided(2, 120)


def test_state_outlives_a_run_of_a_strategy_that_does_not_take_it(tmp_path: Path) -> None:
    kept = by_slice(tmp_path)
    follow(kept, Hearing())
    kept.load(Hearing({"n": 7}))
    kept.note_decided(1, 60)
    between = by_slice(tmp_path)
    follow(between, Stateless())
    assert "has no load_state" in between.load(Stateless())
    between.note_decided(2, 120)
    strategy = Hearing()
    after = by_slice(tmp_path)
    follow(after, strategy)
    after.load(strategy)
    assert strategy.state == {"n": 7}


def test_a_slice_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    content = {"version": 1, "agent": "agent:Counter", "saved_ns": 1, "slice": {"number": "x"}}
    (tmp_path / "strategy.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="the slice that was decided last cannot be read"):
        follow(by_slice(tmp_path), Stateless())


@pytest.mark.parametrize(
    ("lockstep", "mode", "agent_id", "keeps"),
    [
        (True, "paper", "steady", True),
        (False, "paper", "steady", False),
        (True, "local", "steady", False),  # it begins with an empty directory
        (True, "paper", "", False),  # nobody would find it again
    ],
)
def test_only_a_run_that_can_be_taken_up_is_kept_by_slice(
    lockstep: bool, mode: str, agent_id: str, keeps: bool
) -> None:
    assert keeps_by_slice(lockstep=lockstep, mode=mode, agent_id=agent_id) is keeps
