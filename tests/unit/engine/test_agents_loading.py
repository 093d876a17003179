from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dry_work.engine.agents import check_params, load_agent, parse_params
from dry_work.errors import ConfigError

STRATEGY = """
import backtrader as bt
from beside import NUMBER

class Cross(bt.Strategy):
    params = (("fast", 10), ("ratio", 0.5), ("on", True), ("name", "x"), ("any", None), ("levels", (1, 2)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("NUMBER = 1\n")
    (tmp_path / "cross.py").write_text(STRATEGY)
    return tmp_path


def test_a_strategy_is_loaded_with_the_files_beside_it(folder: Path) -> None:
    agent = load_agent(f"{folder}/cross.py:Cross", {"fast": "20", "ratio": "1"})
    assert agent.strategy.__name__ == "Cross"
    assert agent.params == {"fast": 20, "ratio": 1.0}
    assert agent.all_params["levels"] == (1, 2)
    assert agent.all_params["fast"] == 20
    assert len(agent.source_digest) == 64


def test_the_only_strategy_of_a_file_needs_no_name(folder: Path) -> None:
    assert load_agent(f"{folder}/cross.py").strategy.__name__ == "Cross"


def test_a_class_named_agent_is_the_default_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "import backtrader as bt\nclass Other(bt.Strategy): pass\nclass Agent(bt.Strategy): pass\n"
    )
    assert load_agent(f"{tmp_path}/two.py").strategy.__name__ == "Agent"


def test_the_bundled_agent_is_the_default() -> None:
    agent = load_agent()
    assert agent.strategy.__name__ == "SmaCross"
    assert set(agent.all_params) >= {"fast_period", "slow_period"}


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("import backtrader as bt\nclass A(bt.Strategy): pass\n", "B", "has no class 'B'; its strategies: A"),
        ("class B: pass\n", "B", "B is no backtrader.Strategy; its strategies: none"),
        ("x = 1\n", "", "has no strategy: define a class"),
        ("x = (\n", "", "line 1: '(' was never closed"),
        ("\nimport nothing_like_this\n", "", "line 2: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit(3)\n", "", "line 1: SystemExit: 3"),
        (
            "import backtrader as bt\nclass A(bt.Strategy): pass\nclass B(bt.Strategy): pass\n",
            "",
            "has several strategies, name one",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, content: str, name: str, message: str
) -> None:
    path = tmp_path / "agent_under_test.py"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_agent(f"{path}:{name}" if name else str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing/here.py:A", "nothing/here.py: no such file"),
        ("no_such_package.agent:A", "there is no module 'no_such_package.agent'"),
        ("agents.sma_cross:Nothing", "has no class 'Nothing'"),
    ],
)
def test_a_missing_agent_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_agent(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"fast": "5"}, {"fast": 5}),
        ({"ratio": "2"}, {"ratio": 2.0}),
        ({"on": "false"}, {"on": False}),
        ({"on": "0"}, {"on": False}),
        ({"name": "5"}, {"name": "5"}),
        ({"any": "[1, 'a']"}, {"any": [1, "a"]}),
        ({"any": "word"}, {"any": "word"}),
        ({"levels": "[3, 4]"}, {"levels": (3, 4)}),
    ],
)
def test_a_parameter_takes_the_type_of_its_default(
    folder: Path, given: dict[str, str], expected: dict[str, object]
) -> None:
    strategy = load_agent(f"{folder}/cross.py").strategy
    found = check_params(strategy, given)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fats": "5"}, "Cross has no parameter 'fats'; its parameters: fast, ratio, on, name, any, levels"),
        ({"fast": "5.5"}, "-p fast=5.5: expected a whole number, as in its default 10"),
        ({"fast": "true"}, "-p fast=true: expected a whole number"),
        ({"ratio": "much"}, "-p ratio=much: expected a number"),
        ({"on": "maybe"}, "-p on=maybe: expected true or false"),
        ({"levels": "3"}, "-p levels=3: expected a list"),
    ],
)
def test_a_wrong_parameter_says_what_is_allowed(folder: Path, given: dict[str, str], message: str) -> None:
    strategy = load_agent(f"{folder}/cross.py").strategy
    with pytest.raises(ConfigError) as caught:
        check_params(strategy, given)
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", ["fast", "=5", ""])
def test_an_entry_without_name_or_value_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="expected name=value"):
        parse_params([entry])


def test_a_parameter_given_twice_must_agree() -> None:
    assert parse_params(["a=1", "b=x=y", "a=1"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="-p a: given twice"):
        parse_params(["a=1", "a=2"])


def test_a_file_is_loaded_as_it_is_now_also_when_its_size_and_second_are_those_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "turned.py"
    source = "import backtrader as bt\nclass Turned(bt.Strategy):\n    params = (('fast', 5),)\n"
    for digit in "56":
        path.write_text(source.replace("5", digit))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert load_agent(f"{path}:Turned").strategy.params.fast == int(digit)
