"""Options that commands share, and what they mean together with `dry-work.toml` and the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dry_work.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def complete_files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file's name, for options whose value is more than a path."""
    return [CompletionItem(incomplete, type="file")]


def strategy_options(command: _Command) -> _Command:
    """Add --symbols, --agent and -p."""
    options = (
        click.option(
            "--symbols",
            type=click.Path(),
            metavar="FILE",
            help="Symbols to trade, one a line. Default: ./symbols.txt.",
        ),
        click.option(
            "--agent",
            shell_complete=complete_files,
            metavar="FILE.py:Class",
            help="The strategy: a file or a module, and its class. Default: the bundled SMA crossover.",
        ),
        click.option(
            "-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of it. May be repeated."
        ),
    )
    return _add(command, options)


def feed_options(command: _Command) -> _Command:
    """Add --tz, --timeframe, --resample, --extra-field and --prenext."""
    options = (
        click.option("--tz", metavar="ZONE", help="Time zone of sessions and of the strategy's clock. Default: UTC."),
        click.option("--timeframe", metavar="FRAME", help="Length of the bars, for example 1m, 5m, 1h. Default: 1m."),
        click.option("--resample", metavar="FRAMES", help="Further feeds of longer bars, for example 5m,1h."),
        click.option(
            "--extra-field", "extra_fields", multiple=True, metavar="NAME", help="A numeric field that is a line."
        ),
        click.option("--prenext", is_flag=True, default=None, help="Call `next` while some symbols have no bars yet."),
    )
    return _add(command, options)


def _add(command: _Command, options: Iterable[Callable[[Any], Any]]) -> _Command:
    for option in reversed(tuple(options)):
        command = option(command)
    return command


class Choices:
    """Options given, and behind them the tables of `dry-work.toml`.

    Args:
        options: by name; None and empty tuples count as not given.
        tables: of the file, the one that wins first.
    """

    def __init__(self, options: Mapping[str, Any], *tables: Mapping[str, Any]) -> None:
        self._options = options
        self._tables = tables

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value in force."""
        given = self._options.get(name)
        if given is not None and given != ():
            return given
        return next((table[name] for table in self._tables if name in table), default)

    def params(self) -> dict[str, str]:
        """Return the strategy's parameters as texts: those of `-p` over those of the file.

        Raises:
            ConfigError: an entry of `-p` is no assignment.
        """
        from dry_work.engine.agents import parse_params

        found: dict[str, str] = {}
        for table in reversed(self._tables):
            found.update({str(name): str(value) for name, value in dict(table.get("params", {})).items()})
        found.update(parse_params(self._options.get("params") or ()))
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a text or a list of texts as a tuple.

        Raises:
            ConfigError: it is neither.
        """
        value = self.get(name, ())
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{name}: expected a text or a list of texts, not {value!r}")


def build_shared(choices: Choices) -> dict[str, Any]:
    """Return the settings that every run of a strategy has, live or not.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    from dry_work import settings as s
    from dry_work.engine.agents import DEFAULT_AGENT
    from dry_work.market.symbols import read_symbols

    return {
        "symbols": tuple(read_symbols(Path(choices.get("symbols", s.DEFAULT_SYMBOLS)))),
        "agent": str(choices.get("agent", DEFAULT_AGENT)),
        "params": choices.params(),
        "tz": s.parse_zone(str(choices.get("tz", "UTC"))),
        "resample": _frames(choices.get("resample", "")),
        "extra_fields": choices.texts("extra_fields"),
        "forward_prenext": bool(choices.get("prenext", False)),
    }


def check_frames(base: Any, frames: Iterable[Any]) -> None:
    """Check that bars can be made longer as asked for.

    Raises:
        ConfigError: naming the frame that cannot be made.
    """
    for frame in frames:
        if frame.length_ns <= base.length_ns or frame.length_ns % base.length_ns:
            raise ConfigError(
                f"--resample {frame.text}: expected a longer time frame that is a multiple of --timeframe {base.text}"
            )


def _frames(value: Any) -> tuple[Any, ...]:
    from dry_work.settings import parse_timeframe

    texts = value.split(",") if isinstance(value, str) else list(value)
    return tuple(parse_timeframe(str(text), option="--resample") for text in texts if str(text).strip())
