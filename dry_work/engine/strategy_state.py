"""What a strategy wants to keep over a restart: `save_state()` and `load_state(state)`. Engine thread only.

A strategy may define both. `save_state` returns what it wants to keep, made of None, bool, int, float, str, list and
dict with text keys; it is written at once when the strategy was told of an order or has made one, else after slices at
most every second, and at the end of a run. `load_state` is given it back at the next start, after the warm-up and
before the first `next`.

What the strategy was told of its orders is written with it, in one file: after a restart it hears what its state does
not know yet, and nothing twice. Orders leave once the state that knows of them is written.

In lock-step the file is written with every slice, for every strategy, and says which slice was decided last. So after a
restart the slice that was open is decided once: by the process that died, if its decision is in the file, and otherwise
by the one that follows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import msgspec

from dry_work.broker.flight import NO_FLIGHT, Flight
from dry_work.broker.told import ToldRecord, encode_told, parse_told
from dry_work.clock import Clock
from dry_work.errors import ConfigError, StrategyError
from dry_work.storage import write_atomically

INTERVAL_S = 1.0
_VERSION = 1
_PLAIN = (bool, int, float, str)
ALLOWED = "None, bool, int, float, str, list and dict with text keys"


class OrderTelling(Protocol):
    """What keeps what a strategy was told of its orders; see `dry_work.broker.paper`."""

    has_untold_changes: bool

    def keep_told(self, record: ToldRecord | None) -> None: ...
    def note_told(self, notification: Any) -> None: ...
    def told_record(self) -> ToldRecord: ...
    def release_orders(self) -> None: ...


class DecidedSlice(msgspec.Struct, frozen=True, kw_only=True):
    """A slice for which the strategy has had its turn."""

    number: int  # the publisher's
    end_ns: int


class StrategyKeeper:
    """Keeps the state of one strategy in a file.

    Args:
        path: the file.
        agent: which strategy it belongs to; state of another one is left aside.
        clock: the machine's.
        flight: is told of what is written.
        by_slice: write with every slice that was decided, and only then, also for a strategy without `save_state`.
    """

    def __init__(
        self, path: Path, *, agent: str, clock: Clock, flight: Flight = NO_FLIGHT, by_slice: bool = False
    ) -> None:
        self.decided: DecidedSlice | None = None  # the last one, as the file says once it was read
        self._by_slice = by_slice
        self._left: dict[str, Any] = {}  # state that the strategy at hand does not take
        self._path = path
        self._flight = flight
        self._agent = agent
        self._clock = clock
        self._strategy: Any = None
        self._telling: OrderTelling | None = None
        self._orders = 0
        self._next_s = 0.0
        self._written: tuple[str, DecidedSlice | None] | None = None

    def follow(self, telling: OrderTelling, strategy_class: Any) -> None:
        """Before the start of the broker: let it keep what a strategy that keeps its state is told.

        Raises:
            ConfigError: the file cannot be used.
        """
        if not self._by_slice and not callable(getattr(strategy_class, "save_state", None)):
            return
        found = self._read()
        if found is None or found["agent"] != self._agent:
            found = {}
        telling.keep_told(parse_told(found["orders"]) if "orders" in found else None)
        self._telling = telling
        if self._by_slice:
            self.decided = self._parse_slice(found.get("slice"))

    def is_decided(self, number: int, end_ns: int) -> bool:
        """Tell whether this is the slice that was decided last."""
        return self.decided == DecidedSlice(number=number, end_ns=end_ns)

    def take_up(self, number: int, end_ns: int) -> None:
        """Keep in mind of the slice that was decided last whether it is the one that the exchange waits for.

        Args:
            number: of that slice, 0 when it waits for none.
        """
        # Another session of the market may have a slice of the same number and end.
        if not self.is_decided(number, end_ns):
            self.decided = None

    def load(self, strategy: Any) -> str:
        """Give `strategy` what it kept; return a sentence about it for people, empty when there was nothing.

        Raises:
            ConfigError: the file cannot be used.
            Exception: what `load_state` raises.
        """
        self._strategy = strategy if callable(getattr(strategy, "save_state", None)) else None
        if self._telling is not None:
            _hear(strategy, self._telling)
        found = self._read()
        if found is None:
            return ""
        if found["agent"] != self._agent:
            aside = self._path.with_name(f"{self._path.stem}-of-another{self._path.suffix}")
            self._path.replace(aside)
            return f"the state kept is that of {found['agent']}: left aside as {aside.name}"
        if "state" not in found:
            return ""
        if not callable(getattr(strategy, "load_state", None)):
            self._left = {"state": found["state"]}
            return f"{self._agent} has kept state, but has no load_state: it is left as it is"
        strategy.load_state(found["state"])
        return f"state of {self._agent} loaded"

    def after_turn(self) -> None:
        """Write the state if the strategy was told of an order, or has decided on one."""
        if self._by_slice or self._telling is None or self._strategy is None:
            return
        if self._telling.has_untold_changes:
            self.save()

    def after_slice(self, order_count: int) -> None:
        """Write the state if it is time to, if there are new orders, or if the strategy was told of one."""
        if self._by_slice or self._strategy is None:
            return
        now_s = self._clock.monotonic()
        is_told = self._telling is not None and self._telling.has_untold_changes
        if now_s >= self._next_s or order_count != self._orders or is_told:
            self._orders = order_count
            self.save()
            self._next_s = self._clock.monotonic() + INTERVAL_S

    def note_decided(self, number: int, end_ns: int) -> None:
        """Write down that a slice was decided, with all that was decided; then let its orders go.

        Raises:
            As `save`.
        """
        if self._by_slice:
            self.decided = DecidedSlice(number=number, end_ns=end_ns)
            self.save()

    def save(self) -> None:
        """Write the state and what the strategy was told, if they have changed; then let its orders go.

        Raises:
            StrategyError: it holds what cannot be kept, or cannot be written.
            Exception: what `save_state` raises.
        """
        if self._strategy is None and not self._by_slice:
            return
        content = dict(self._left)
        if self._strategy is not None:
            content["state"] = self._strategy.save_state()
            check_state(content["state"])
        if self._telling is not None:
            content["orders"] = encode_told(self._telling.told_record())
        text = json.dumps(content)
        if self._by_slice:
            content["slice"] = None if self.decided is None else msgspec.to_builtins(self.decided)
        written = (text, self.decided)
        if written != self._written:
            self._write({"version": _VERSION, "agent": self._agent, "saved_ns": self._clock.time_ns(), **content})
            self._written = written
            self._flight.note_state(text)
        if self._telling is not None:
            self._telling.release_orders()

    def _write(self, content: dict[str, Any]) -> None:
        try:
            write_atomically(self._path, json.dumps(content).encode() + b"\n")
        except OSError as error:
            raise StrategyError(f"{self._path}: the strategy's state cannot be written: {error.strerror}") from error

    def _parse_slice(self, content: object) -> DecidedSlice | None:
        try:
            return msgspec.convert(content, type=DecidedSlice | None)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{self._path}: the slice that was decided last cannot be read: {error}; move the file away to start "
                "without it"
            ) from None

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._path}: the strategy's state cannot be read ({error}); move the file away to start without it"
            ) from None
        if not isinstance(content, dict) or content.get("version") != _VERSION or "agent" not in content:
            raise ConfigError(
                f"{self._path}: not a strategy's state of version {_VERSION}; move the file away to start without it"
            )
        return content


def keeps_by_slice(*, lockstep: bool, mode: str, agent_id: str) -> bool:
    """Tell whether a run can be taken up where it was: the market waits for it, by its name."""
    return lockstep and mode != "local" and bool(agent_id)


def _hear(strategy: Any, telling: OrderTelling) -> None:
    """Take note of every order that the strategy has heard of."""
    notify_order = strategy.notify_order

    def notify_and_note(order: Any) -> None:
        notify_order(order)
        telling.note_told(order)

    strategy.notify_order = notify_and_note


def check_state(state: Any, where: str = "save_state()") -> None:
    """Check that `state` comes back as it is.

    Raises:
        StrategyError: naming the first part that would not.
    """
    if state is None or type(state) in _PLAIN:
        return
    if type(state) is list:
        for index, item in enumerate(state):
            check_state(item, f"{where}[{index}]")
        return
    if type(state) is dict:
        for key, value in state.items():
            if type(key) is not str:
                raise StrategyError(f"{where}: the key {key!r:.40} is a {type(key).__name__}; kept are {ALLOWED}")
            check_state(value, f"{where}[{key!r}]")
        return
    raise StrategyError(f"{where} is a {type(state).__name__}; kept are {ALLOWED}")
