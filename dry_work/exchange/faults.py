"""Faults on purpose: what goes wrong, where, and when. Pure.

A fault waits for occasions: requests, frames of a stream, trade events. It lets `skip` of them pass, then strikes the
next `times`, each with the probability `rate` by chance from its own seed. So a script is a list of faults, and the
same seed strikes the same occasions. Every fault counts by itself; of several that strike together all are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from random import Random
from typing import Any

import msgspec

from dry_work.errors import CodecError

# Where, and what can go wrong there.
KINDS: Mapping[str, tuple[str, ...]] = {
    "http": ("latency", "status", "drop", "reset", "silent"),
    "trades": ("error", "close", "reset", "silent", "half_open", "slow"),
    "data": ("error", "close", "reset", "silent", "half_open", "slow"),
    "events": ("duplicate", "reorder", "drop", "unknown", "unknown_status"),
    "clock": ("skew",),
}
AT_LOGIN = frozenset({"error"})  # of a stream; the other kinds strike when a frame is about to be sent
_FOREVER = 600.0
_LARGEST_S = 86_400.0
_MOST = 1000  # faults at a time
_ERROR_CODES = (402, 406, 409, 500)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong.

    `seconds` is how long a latency or a silent request lasts, or how much the clock is ahead. `when` says whether a
    request is carried out first. `code` is that of a stream's error frame, or of its close.
    """

    on: str
    kind: str
    key: str = ""  # of one account only
    method: str = ""  # of requests with this method only
    path: str = ""  # of requests and streams whose path begins with it
    skip: int = 0
    times: int | None = 1  # None: without end
    rate: float = 1.0
    seed: int = 0
    seconds: float = 0.0
    status: int = 500
    when: str = "before"
    code: int = 0


class _Entry:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.struck = 0
        self.draws = 0
        self.chance = Random(fault.seed)

    @property
    def is_over(self) -> bool:
        return self.fault.times is not None and self.struck >= self.fault.times

    def meets(self) -> bool:
        """Count an occasion; tell whether the fault strikes."""
        self.seen += 1
        if self.seen <= self.fault.skip or self.is_over:
            return False
        if self.fault.rate < 1:
            self.draws += 1
            if self.chance.random() >= self.fault.rate:
                return False
        self.struck += 1
        return True


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    fault: Fault
    seen: int
    struck: int
    draws: int


class _KeptPlan(msgspec.Struct, frozen=True, kw_only=True):
    made: int
    faults: list[_Kept]


class FaultPlan:
    """The faults that are set."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._entries: dict[str, _Entry] = {}
        self._made = 0
        self.on_change: Callable[[], None] | None = (
            None  # called when a fault that may be over has come, gone or struck
        )
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> str:
        """Set a fault; return its id.

        Raises:
            ValueError: there are too many.
        """
        if len(self._entries) >= _MOST:
            raise ValueError(f"there are {_MOST} faults: remove some first")
        self._made += 1
        name = f"f{self._made}"
        self._entries[name] = _Entry(fault)
        self._tell()
        return name

    def remove(self, name: str) -> bool:
        """Remove a fault; tell whether it was there."""
        was_there = self._entries.pop(name, None) is not None
        self._tell()
        return was_there

    def clear(self) -> None:
        """Remove all."""
        self._entries.clear()
        self._tell()

    def describe(self) -> list[dict[str, Any]]:
        """Return all faults with their ids, the occasions that they have seen and those that they struck."""
        return [
            {"id": name, **msgspec.to_builtins(entry.fault), "seen": entry.seen, "struck": entry.struck}
            for name, entry in self._entries.items()
        ]

    def take(
        self, on: str, *, key: str = "", method: str = "", path: str = "", kinds: Collection[str] | None = None
    ) -> list[Fault]:
        """Tell of an occasion; return the faults that strike it. `kinds` are those that it is an occasion for."""
        struck = [
            entry.fault
            for entry in self._entries.values()
            if entry.fault.on == on
            and (kinds is None or entry.fault.kind in kinds)
            and entry.fault.key in ("", key)
            and entry.fault.method in ("", method)
            and path.startswith(entry.fault.path)
            and entry.meets()
        ]
        if any(fault.times is not None for fault in struck):
            self._tell()
        return struck

    def dump(self) -> bytes:
        """Return all faults and how far each is, for `load`."""
        rows = [
            _Kept(name=name, fault=entry.fault, seen=entry.seen, struck=entry.struck, draws=entry.draws)
            for name, entry in self._entries.items()
        ]
        return msgspec.json.encode(_KeptPlan(made=self._made, faults=rows))

    def load(self, data: bytes) -> None:
        """Take up what `dump` has written, in the place of all that is set.

        Raises:
            CodecError: it is not of `dump`.
        """
        try:
            kept = msgspec.json.decode(data, type=_KeptPlan)
        except msgspec.MsgspecError as error:
            raise CodecError(f"no faults: {error}") from None
        self._made = kept.made
        self._entries = {}
        for row in kept.faults:
            entry = self._entries[row.name] = _Entry(row.fault)
            entry.seen, entry.struck, entry.draws = row.seen, row.struck, row.draws
            for _ in range(row.draws):
                entry.chance.random()

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change()

    @property
    def skew_s(self) -> float:
        """How much the clock is ahead."""
        return sum(entry.fault.seconds for entry in self._entries.values() if entry.fault.on == "clock")


def parse_faults(body: object) -> list[Fault]:
    """Read a fault, a list of them, or `{"random": {"seed": 1, "rate": 0.01, "kinds": [...]}}`.

    Raises:
        CodecError: with a sentence about what cannot be used.
    """
    if isinstance(body, list):
        return [fault for item in body for fault in parse_faults(item)]
    if not isinstance(body, dict):
        raise CodecError("a fault is an object: {on, kind, ...}")
    if "random" in body:
        return _parse_random(body)
    known = {field.name: field for field in msgspec.structs.fields(Fault)}
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise CodecError(f"a fault has no {', '.join(unknown)[:80]}: expected some of {', '.join(known)}")
    on, kind = str(body.get("on")), body.get("kind")
    if on not in KINDS:
        raise CodecError(f"on is {on!r:.40}: expected one of {', '.join(KINDS)}")
    if kind not in KINDS[on]:
        raise CodecError(f"kind is {kind!r:.40}: expected, on {on}, one of {', '.join(KINDS[on])}")
    plain = {name: float(value) if isinstance(value, Decimal) else value for name, value in body.items()}
    if kind == "silent" and on == "http":
        plain.setdefault("seconds", _FOREVER)
    if kind == "error":
        plain.setdefault("code", 406)
    try:
        fault = msgspec.convert(plain, Fault)
    except msgspec.ValidationError as error:
        raise CodecError(f"a fault cannot be used: {error}") from None
    _check(fault)
    return [fault]


def _check(fault: Fault) -> None:
    for name, value, low, high in (
        ("skip", fault.skip, 0, 10**9),
        ("times", fault.times, 1, 10**9),
        ("rate", fault.rate, 0.0, 1.0),
        ("status", fault.status, 400, 599),
    ):
        if value is not None and not low <= value <= high:
            raise CodecError(f"{name} is {value}: expected {low} to {high}")
    lowest = -_LARGEST_S if fault.kind == "skew" else 0.0
    if not lowest <= fault.seconds <= _LARGEST_S:
        raise CodecError(f"seconds is {fault.seconds}: expected {lowest:g} to {_LARGEST_S:g}")
    if fault.when not in ("before", "after"):
        raise CodecError(f"when is {fault.when!r:.40}: expected before or after the request is carried out")
    if fault.kind == "error" and fault.code not in _ERROR_CODES:
        raise CodecError(f"code is {fault.code}: expected one of {', '.join(map(str, _ERROR_CODES))}")
    if fault.kind == "close" and not (fault.code == 0 or 1000 <= fault.code <= 1014 or 3000 <= fault.code <= 4999):
        raise CodecError(f"code is {fault.code}: expected a close code, as 1001 or 4000")


# What chance brings when nothing else is said: all that a client has to live with, and nothing that needs a hand.
RANDOM: Mapping[str, Mapping[str, Any]] = {
    "latency": {"on": "http", "kind": "latency", "seconds": 0.2},
    "429": {"on": "http", "kind": "status", "status": 429},
    "500": {"on": "http", "kind": "status", "status": 500},
    "504": {"on": "http", "kind": "status", "status": 504},
    "504-after": {"on": "http", "kind": "status", "status": 504, "when": "after"},
    "drop": {"on": "http", "kind": "drop", "when": "after"},
    "reset": {"on": "http", "kind": "reset"},
    "duplicate": {"on": "events", "kind": "duplicate"},
    "reorder": {"on": "events", "kind": "reorder"},
    "lose": {"on": "events", "kind": "drop"},
    "unknown": {"on": "events", "kind": "unknown"},
    "trades-reset": {"on": "trades", "kind": "reset"},
    "data-reset": {"on": "data", "kind": "reset"},
}


def _parse_random(body: dict[str, Any]) -> list[Fault]:
    asked = body["random"]
    if not isinstance(asked, dict) or len(body) > 1 or set(asked) - {"seed", "rate", "kinds", "key"}:
        raise CodecError("random is an object of seed, rate, kinds and key, and stands alone")
    kinds = asked.get("kinds", list(RANDOM))
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) and kind in RANDOM for kind in kinds):
        raise CodecError(f"kinds is not usable: expected a list of some of {', '.join(RANDOM)}")
    seed = asked.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise CodecError("seed is not usable: expected a whole number")
    shared = {"rate": asked.get("rate", 0.01), "key": asked.get("key", ""), "times": None}
    places = {kind: number for number, kind in enumerate(RANDOM)}
    return parse_faults([{**RANDOM[kind], **shared, "seed": seed * len(RANDOM) + places[kind]} for kind in kinds])
