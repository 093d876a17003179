"""The frames of a flight record: what passed the seam of an engine, turn by turn. Pure.

A turn is one round of the engine's loop. Its frames stand in this order: `WARMUP` slices and `ANSWER`s (mostly of the
start), the `EVENT` that began it, an `ITEM` for each word of the venue that the books took, and `TURN`, which closes
it. `SESSION` stands before the first turn, `FINISH` behind the last one. A payload is MessagePack.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from dry_work import errors
from dry_work.broker.account import AccountState
from dry_work.broker.books_reader import JournalBooks
from dry_work.broker.flight import (
    ACCOUNT,
    CONNECT,
    EXECUTIONS,
    HISTORY,
    INCREMENTS,
    JOURNAL_BOOKS,
    LOOK_UP,
    REAL_TIME,
    RISK_RECORD,
    RISK_STATE,
    SESSION,
    STOP,
    TAKES_SNAPSHOT,
    TROUBLE,
    WITHDRAWN,
    BooksView,
    Decision,
    Told,
)
from dry_work.broker.journal import JournalSession, RiskRecord
from dry_work.broker.outcomes import (
    CancelRefused,
    OrderLookedUp,
    OrderRefused,
    OrderTaken,
    OrderUnresolved,
    ReplacementRefused,
    ReplacementTaken,
)
from dry_work.errors import BrokerError
from dry_work.market.messages import BarNote, News, PriceBands, Slice, TradingStatus
from dry_work.orders.model import Execution, TradeEvent, VenueOrder
from dry_work.orders.risk import RiskState
from dry_work.ports import SourceFailed, SourceStatus

SESSION_KIND = 17
ANSWER_KIND = 18
EVENT_KIND = 19
ITEM_KIND = 20
TURN_KIND = 21
FINISH_KIND = 22
WARMUP_KIND = 23
FLIGHT_KINDS = range(SESSION_KIND, WARMUP_KIND + 1)

FORMAT = 1  # of the frames' payloads


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """What is read under a name is `value` from its reading `number` (from 1, within the turn) on."""

    name: str
    number: int
    value: Any


class TurnRecord(msgspec.Struct, frozen=True, array_like=True):
    """What happened in a turn beside what its other frames hold."""

    number: int  # rising; turns in which nothing happened are left out
    kind: str  # start, turn, end
    at_ns: int  # time of the machine at its end
    has_event: bool = False
    takes: tuple[int, ...] = ()  # items that each call of the broker's `next` took
    clocks: Mapping[str, tuple[int | float, ...]] = {}  # every reading, by clock
    readings: tuple[Reading, ...] = ()
    decisions: tuple[Decision, ...] = ()
    told: tuple[Told, ...] = ()
    books: BooksView | None = None  # when they may have changed
    value: float | None = None  # of the account, at the end of a slice
    state: str = ""  # digest of what the strategy keeps, when it was written
    error: str = ""  # why the turn was not finished


class SessionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was: enough to build it again. It holds no secret."""

    format: int = FORMAT
    dry_work: str
    python: str
    backtrader: str
    started_ns: int
    mode: str
    agent: str  # as it was asked for
    class_name: str
    params: Mapping[str, str]  # as they were given
    all_params: Mapping[str, str]  # those in force, as texts
    masked: tuple[str, ...] = ()  # parameters whose values are not told
    source_digest: str = ""
    source_path: str = ""  # of the strategy's file, as it was then
    main_source: str = ""  # its name in `sources`
    sources: Mapping[str, str] = {}  # texts of the strategy's file and of those beside it that it imports
    seed: int = 0
    settings: Mapping[str, Any] = {}
    agent_id: str = ""
    agent_name: str = ""  # in client order ids
    fingerprint: str = ""  # of the data of a local run
    lockstep: bool = False
    rules: str | None = None
    journal: bytes = b""  # the orders journal at the start, compressed; empty: too large
    strategy_state: bytes | None = None  # the file at the start, None: there was none


class FinishRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a session ended."""

    reason: str  # done, stopped, limit, failed
    detail: str = ""
    orders: int = 0
    fills: int = 0
    start_value: float = 0.0
    end_value: float = 0.0
    bars: int = 0
    notes: tuple[str, ...] = ()


_TYPES: Mapping[str, Any] = {
    kind.__name__: kind
    for kind in (
        Slice, News, TradingStatus, PriceBands, BarNote, SourceStatus, TradeEvent, AccountState, OrderTaken,
        OrderRefused, OrderUnresolved, CancelRefused, OrderLookedUp, ReplacementTaken, ReplacementRefused,
    )
}  # fmt: skip
_ANSWERS: Mapping[str, Any] = {
    CONNECT: tuple[AccountState, int],
    INCREMENTS: dict[str, Any],
    SESSION: JournalSession,
    ACCOUNT: AccountState,
    EXECUTIONS: list[Execution],
    HISTORY: list[VenueOrder] | None,
    LOOK_UP: OrderLookedUp,
    JOURNAL_BOOKS: JournalBooks,
}
_READINGS: Mapping[str, Any] = {
    STOP: bool,
    TROUBLE: str,
    TAKES_SNAPSHOT: bool,
    WITHDRAWN: bool,
    REAL_TIME: bool,
    RISK_STATE: RiskState,
    RISK_RECORD: RiskRecord,
}
_ERROR = "error"
_UNREADABLE = "cannot be read"


def _to_plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BrokerError):
        return {"type": type(value).__name__, **{name: item for name, item in vars(value).items() if item is not None}}
    return str(value)


def _from_plain(kind: Any, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, BrokerError):
        return _build_error(value)
    if isinstance(value, kind):
        return value
    raise ValueError(f"a {kind.__name__} {_UNREADABLE}")


def _build_error(facts: Mapping[str, Any]) -> BrokerError:
    kind = getattr(errors, str(facts.get("type", "")), BrokerError)
    if not (isinstance(kind, type) and issubclass(kind, BrokerError)):
        kind = BrokerError
    error = kind.__new__(kind)
    message = str(facts.get("message", ""))
    Exception.__init__(error, message)
    for name in ("message", "code", "http_status", "request_id", "retry_after_s", "reject_code"):
        setattr(error, name, facts.get(name))
    return error


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
_pair = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}


def encode(content: Any) -> bytes:
    """Return the payload of a frame of a flight."""
    return _encoder.encode(content)


def name_item(item: Any) -> tuple[str, Any]:
    """Return the content of an `EVENT`, `ITEM` or `WARMUP` frame."""
    if isinstance(item, SourceFailed):
        return "SourceFailed", f"{type(item.error).__name__}: {item.error}"
    if isinstance(item, TradeEvent):  # also one of a kind that the simulated exchange adds to it
        return "TradeEvent", item
    return type(item).__name__, item


def decode_item(payload: bytes) -> Any:
    """Return what an `EVENT`, `ITEM` or `WARMUP` frame holds.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        name, raw = _pair.decode(payload)
        if name == "SourceFailed":
            return SourceFailed(error=errors.FeedError(msgspec.msgpack.decode(raw, type=str)))
        kind = _TYPES.get(name)
        if kind is None:
            raise ValueError(f"{name!r} is not known")
        return _decode(f"item {name}", kind, raw)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{_UNREADABLE}: {error}") from None


def encode_answer(name: str, value: Any) -> tuple[str, Any]:
    """Return the content of an `ANSWER` frame: of a value, or of the BrokerError that was raised."""
    return (_ERROR, [name, value]) if isinstance(value, BrokerError) else (name, value)


def decode_answer(payload: bytes) -> tuple[str, Any]:
    """Return (name, value) of an `ANSWER` frame; the value may be a BrokerError.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        name, raw = _pair.decode(payload)
        if name == _ERROR:
            name, facts = msgspec.msgpack.decode(raw, type=tuple[str, dict[str, Any]])
            return name, _build_error(facts)
        kind = _ANSWERS.get(name)
        if kind is None:
            raise ValueError(f"answer {name!r} is not known")
        value = _decode(f"answer {name}", kind, raw)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{_UNREADABLE}: {error}") from None
    if name == INCREMENTS:
        from decimal import Decimal

        value = {symbol: Decimal(text) for symbol, text in value.items()}
    return name, value


def decode_reading(reading: Reading) -> Any:
    """Return the value of a reading in its type."""
    return msgspec.convert(reading.value, _READINGS[reading.name], strict=False)


def decode_struct(kind: Any, payload: bytes) -> Any:
    """Return what a `SESSION`, `TURN` or `FINISH` frame holds.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return _decode(kind.__name__, kind, payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{_UNREADABLE}: {error}") from None


def _decode(name: str, kind: Any, raw: Any) -> Any:
    decoder = _decoders.get(name)
    if decoder is None:
        decoder = _decoders[name] = msgspec.msgpack.Decoder(kind, dec_hook=_from_plain)
    return decoder.decode(raw)
