"""Values of environment variables: switches, numbers, durations. An empty variable counts as unset. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dry_work.errors import ConfigError
from dry_work.settings import read_variable

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 7 * 86_400.0


def parse_duration(text: str, *, name: str) -> float:
    """Return a duration such as 3s, 150ms or 1m30s in seconds; 0 needs no unit.

    Raises:
        ConfigError: naming variable, value and what is allowed.
    """
    if text.strip() == "0":
        return 0.0
    matches = list(_DURATION.finditer(text.strip()))
    if not matches or "".join(match[0] for match in matches) != text.strip():
        raise ConfigError(f"{name}={text!r}: expected a duration with a unit (ms, s, m, h), such as 150ms, 3s or 1m30s")
    seconds = sum(float(match[1]) * _UNITS_S[match[2]] for match in matches)
    if seconds > _LONGEST_S:
        raise ConfigError(f"{name}={text!r}: expected at most 168h")
    return seconds


def parse_flag(text: str, *, name: str) -> bool:
    """Return whether a switch is on; empty is off.

    Raises:
        ConfigError: naming variable, value and what is allowed.
    """
    word = text.strip().lower()
    if word in ("1", "t", "true"):
        return True
    if word in ("", "0", "f", "false"):
        return False
    raise ConfigError(f"{name}={text!r}: expected one of 1, t, true, 0, f, false")


def read_flag(environment: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return whether a switch is on.

    Raises:
        ConfigError: naming variable, value and what is allowed.
    """
    text = read_variable(environment, name)
    return parse_flag(text, name=name) if text else default


def read_count(environment: Mapping[str, str], *names: str, default: int, least: int = 0, most: int) -> int:
    """Return a whole number; several names mean the same thing.

    Raises:
        ConfigError: naming variable, value and what is allowed.
    """
    text = read_variable(environment, *names)
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{names[0]}={text!r}: expected a whole number from {least} to {most}")
    return int(text)


def read_number(environment: Mapping[str, str], name: str, *, default: float, least: float, most: float) -> float:
    """Return a number, with or without a fraction.

    Raises:
        ConfigError: naming variable, value and what is allowed.
    """
    text = read_variable(environment, name)
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) or not least <= float(text) <= most:
        raise ConfigError(f"{name}={text!r}: expected a number from {least:g} to {most:g}")
    return float(text)


def read_duration(environment: Mapping[str, str], name: str, default_s: float, *, least_s: float = 0.0) -> float:
    """Return a duration in seconds.

    Raises:
        ConfigError: naming variable, value and what is allowed.
    """
    text = read_variable(environment, name)
    if not text:
        return default_s
    seconds = parse_duration(text, name=name)
    if seconds < least_s:
        least = f"{least_s:g}s" if least_s >= 1 else f"{least_s * 1000:g}ms"
        raise ConfigError(f"{name}={text!r}: expected at least {least}")
    return seconds
