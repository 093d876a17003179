"""Find a strategy, load it, and check the parameters it is given."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import backtrader as bt
import msgspec

from dry_work.errors import ConfigError

DEFAULT_AGENT = "agents.sma_cross:SmaCross"


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy class with checked parameters."""

    spec: str  # as it was asked for
    strategy: type[Any]
    params: dict[str, Any]  # those given, converted to the types of their defaults
    source_digest: str  # sha256 of the strategy's file

    @property
    def all_params(self) -> dict[str, Any]:
        """Every parameter of the strategy with its value in force."""
        defaults = self.strategy.params
        return {name: self.params.get(name, getattr(defaults, name)) for name in defaults._getkeys()}


def load_agent(spec: str = DEFAULT_AGENT, params: Mapping[str, str] | None = None) -> Agent:
    """Load the strategy that `spec` names and check `params` against it.

    Args:
        spec: `path/to/file.py:Class`, `package.module:Class`, or either without the class when the module has one
            strategy only or one named Agent.
        params: texts by parameter name, as given with `-p name=value`.

    Raises:
        ConfigError: when the file, the class or a parameter is missing, or a value has another type than its default.
    """
    where, _, class_name = spec.partition(":")
    if where.endswith(".py") or "/" in where:
        module, path = _load_file(Path(where), spec), Path(where)
    else:
        module = _load_module(where, spec)
        path = Path(module.__file__ or "")
    strategy = _find_class(module, class_name, spec)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return Agent(spec=spec, strategy=strategy, params=check_params(strategy, params or {}), source_digest=digest)


def derive_session(agent: Agent, fingerprint: str) -> str:
    """Return the session of a run that is to be repeatable: equal agent, parameters and data give an equal one."""
    parts = [agent.strategy.__name__, agent.source_digest, agent.all_params, fingerprint]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:10]


def parse_params(entries: Iterable[str]) -> dict[str, str]:
    """Split `name=value` entries.

    Raises:
        ConfigError: for an entry without `=` or a name given twice with different values.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"-p {entry!r}: expected name=value, for example -p fast_period=10")
        if found.get(name, value) != value:
            raise ConfigError(f"-p {name}: given twice, as {found[name]!r} and {value!r}")
        found[name] = value
    return found


def check_params(strategy: type[Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return `given` in the types of the strategy's defaults.

    Raises:
        ConfigError: naming the parameter, the value and what is allowed.
    """
    names = list(strategy.params._getkeys())
    checked: dict[str, Any] = {}
    for name, text in given.items():
        if name not in names:
            known = ", ".join(names) if names else "it has none"
            raise ConfigError(f"{strategy.__name__} has no parameter {name!r}; its parameters: {known}")
        checked[name] = _convert(name, text, getattr(strategy.params, name))
    return checked


def _convert(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if default is None or value is None:
        return value
    if isinstance(default, bool):
        if value in (0, 1):
            return bool(value)
        allowed = "true or false"
    elif isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        allowed = "a whole number"
    elif isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        allowed = "a number"
    elif isinstance(default, list | tuple):
        if isinstance(value, list | tuple):
            return type(default)(value)
        allowed = "a list, for example [1, 2]"
    else:
        return value
    raise ConfigError(f"-p {name}={text}: expected {allowed}, as in its default {default!r}")


class _SourceLoader(SourceFileLoader):
    """Loads a file as it is now.

    Python takes compiled code for that of a file of the same size and second: an agent that was changed by a digit and
    started at once would run as it was before.
    """

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _load_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        what = "is a folder, expected a Python file" if path.is_dir() else "no such file"
        raise ConfigError(f"--agent {spec}: {path}: {what}")
    resolved = path.resolve()
    loaded = importlib.util.spec_from_file_location(f"dry_work_agent_{resolved.stem}", resolved)
    if loaded is None or loaded.loader is None:
        raise ConfigError(f"--agent {spec}: {path} is no Python file (expected a name that ends with .py)")
    if type(loaded.loader) is SourceFileLoader:
        loaded.loader = _SourceLoader(loaded.name, str(resolved))
    module = importlib.util.module_from_spec(loaded)
    folder = str(resolved.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that the strategy can import files beside it
    sys.modules[loaded.name] = module  # dataclasses and pickling look their module up
    try:
        loaded.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[loaded.name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(f"--agent {spec}: {path} cannot be imported: {_describe(error, str(resolved))}") from error
    return module


def _load_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            hint = "give a file (agents/sma_cross.py:SmaCross) or an importable module (package.module:Class)"
            raise ConfigError(f"--agent {spec}: there is no module {name!r}; {hint}") from None
        raise ConfigError(f"--agent {spec}: {name} cannot be imported: {_describe(error, '')}") from error
    except Exception as error:
        raise ConfigError(f"--agent {spec}: {name} cannot be imported: {_describe(error, '')}") from error


def _describe(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def _find_class(module: ModuleType, name: str, spec: str) -> type[Any]:
    found = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, bt.Strategy) and value.__module__ == module.__name__
    }
    if name:
        chosen = getattr(module, name, None)
        if isinstance(chosen, type) and issubclass(chosen, bt.Strategy):
            return chosen
        known = ", ".join(found) or "none"
        if chosen is None:
            raise ConfigError(f"--agent {spec}: has no class {name!r}; its strategies: {known}")
        raise ConfigError(f"--agent {spec}: {name} is no backtrader.Strategy; its strategies: {known}")
    if "Agent" in found:
        return found["Agent"]
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise ConfigError(f"--agent {spec}: has no strategy: define a class that derives from backtrader.Strategy")
    raise ConfigError(
        f"--agent {spec}: has several strategies, name one: {', '.join(f'{spec}:{key}' for key in found)}"
    )
