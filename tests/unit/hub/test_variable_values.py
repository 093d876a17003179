from __future__ import annotations

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.variables import parse_flag, read_count, read_duration, read_flag, read_number


def test_switches_are_on_or_off() -> None:
    assert [parse_flag(text, name="X") for text in ("true", "1", "T", "True")] == [True] * 4
    assert [parse_flag(text, name="X") for text in ("", "false", "0", "f", "False")] == [False] * 5
    with pytest.raises(ConfigError, match="X='maybe': expected one of 1, t, true, 0, f, false"):
        parse_flag("maybe", name="X")


def test_a_variable_that_is_empty_or_not_set_has_its_default() -> None:
    for environment in ({}, {"X": " "}):
        assert read_flag(environment, "X", default=True)
        assert read_count(environment, "X", default=7, most=9) == 7
        assert read_number(environment, "X", default=1.5, least=0, most=2) == 1.5
        assert read_duration(environment, "X", 3.0) == 3.0


def test_a_value_out_of_its_range_is_named_with_what_is_allowed() -> None:
    environment = {"COUNT": "10", "NUMBER": "2.5", "SHORT": "0s", "BRIEF": "1s"}
    with pytest.raises(ConfigError, match=r"^COUNT='10': expected a whole number from 0 to 9$"):
        read_count(environment, "COUNT", "OTHER", default=7, most=9)
    with pytest.raises(ConfigError, match=r"^NUMBER='2.5': expected a number from 0 to 2$"):
        read_number(environment, "NUMBER", default=1.5, least=0, most=2)
    with pytest.raises(ConfigError, match=r"^SHORT='0s': expected at least 1ms$"):
        read_duration(environment, "SHORT", 3.0, least_s=0.001)
    with pytest.raises(ConfigError, match=r"^BRIEF='1s': expected at least 2s$"):
        read_duration(environment, "BRIEF", 3.0, least_s=2.0)
