"""What the local target is set to before it is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dry_work.cli.deploy_target import Target, translated
from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from deploy.local_files import TargetSettings

_KEYS = ("ALPACA_API_KEY", "ALPACA_SECRET_KEY")
_EXCHANGE = ("data", "cash", "speed")


def choose_settings(target: Target, given: Mapping[str, Any]) -> tuple[TargetSettings, TargetSettings]:
    """Return what the target is set to, and what the options make of it. Writes nothing.

    Raises:
        ConfigError: an option cannot be used.
    """
    from dataclasses import replace

    from deploy.local_files import read_env_file, read_target
    from dry_work.settings import parse_cash, parse_speed

    with translated():
        before = read_target(target.folder)
        wanted = before
        if given.get("env_file"):
            if any(name in given for name in _EXCHANGE):
                raise ConfigError("--env-file trades with an account: leave out --data, --speed and --cash")
            path = Path(given["env_file"]).absolute()
            missing = [name for name in _KEYS if not read_env_file(path).get(name)]
            if missing:
                raise ConfigError(f"--env-file {path}: has no {' and no '.join(missing)}")
            wanted = replace(before, env_file=str(path))
        elif any(name in given for name in _EXCHANGE):
            wanted = replace(before, env_file="")
    if "data" in given:
        wanted = replace(wanted, data=tuple(str(Path(path).absolute()) for path in given["data"]))
    if "speed" in given:
        if parse_speed(str(given["speed"])) is None:
            raise ConfigError("--speed max: the local exchange serves several agents: give a number")
        wanted = replace(wanted, speed=str(given["speed"]))
    if "cash" in given:
        wanted = replace(wanted, cash=str(parse_cash(str(given["cash"]))))
    return before, wanted


def prepare(target: Target, given: Mapping[str, Any]) -> TargetSettings:
    """Set the target to what the options say, and return it.

    Raises:
        ConfigError: it runs with other settings, or its exchange was opened with others.
    """
    from deploy.local_exchange import LocalExchange
    from deploy.local_files import write_target
    from deploy.local_service import find_service

    before, wanted = choose_settings(target, given)
    if wanted == before:
        return wanted
    if find_service(target.folder):
        raise ConfigError(
            f"the local service runs with {before.describe()}: `dry-work stop --service`, then deploy again"
        )
    with translated():
        is_open = LocalExchange(target.folder).address() is not None
        if is_open and wanted.is_simulated and (wanted.data, wanted.cash) != (before.data, before.cash):
            raise ConfigError(
                f"the local exchange was opened as {before.describe()}: `dry-work stop --service --delete-state` ends "
                "it with all accounts, then deploy again"
            )
        target.folder.make()
        write_target(target.folder, wanted)
    return wanted
