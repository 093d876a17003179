"""The files that settings are read from: `.env` files and `dry-work.toml`. Pure but for `read_*`."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dry_work.errors import ConfigError
from dry_work.orders.risk_limits import SETTING_NAMES

_SHARED_KEYS = (
    "agent", "cash", "data", "extra_fields", "params", "prenext", "resample", "symbols", "timeframe", "tz", "warmup",
)  # fmt: skip
_BACKTEST_KEYS = (
    "commission", "end", "engine", "fees", "guard", "max_volume", "recorded", "slippage", "source", "start",
)  # fmt: skip
TOML_KEYS = {
    "run": (
        *_SHARED_KEYS,
        "agent_id",
        "feed",
        "journal_days",
        "late",
        "lookback",
        "revised",
        "speed",
        "stale_action",
        "stale_s",
        "state_dir",
        "statuses",
    ),
    "backtest": (*_SHARED_KEYS, *_BACKTEST_KEYS),
    "risk": (*SETTING_NAMES, "off"),
    "alerts": ("urls", "heartbeat_url", "heartbeat_seconds", "stale_seconds", "lost_seconds"),
}


def read_environment(folder: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment with what `.env` and `configs/.env` in `folder` add to it.

    Raises:
        ConfigError: for a line that is no assignment.
    """
    found: dict[str, str] = {}
    for path in (folder / "configs" / ".env", folder / ".env"):
        if path.is_file():
            found.update(parse_env_file(path.read_text(encoding="utf-8"), source=str(path)))
    found.update({k: v for k, v in (os.environ if environment is None else environment).items() if v.strip()})
    return found


def parse_env_file(text: str, *, source: str = ".env") -> dict[str, str]:
    """Return the assignments of a `.env` text: `NAME=value` a line, with an optional `export` and quotes.

    Raises:
        ConfigError: naming the line that is no assignment, never its content.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ConfigError(f"{source}, line {number}: expected NAME=value")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def read_toml(path: Path, name: str = "run") -> dict[str, Any]:
    """Return a table of `dry-work.toml`, or nothing when there is no such file or table.

    Raises:
        ConfigError: for a file that is no TOML, or a name that is no setting.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from None
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [{name}] is to be a table")
    for key in table:
        if key not in TOML_KEYS[name]:
            listed = ", ".join(sorted(TOML_KEYS[name]))
            raise ConfigError(f"{path}: [{name}] has no setting {key!r}; its settings: {listed}")
    return table
