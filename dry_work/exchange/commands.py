"""What changes the exchange, as values, and the lines of the log that keeps them. Pure.

Every state of the exchange follows from its recording and from the commands that it took, in their order: ids, fills
and events are the same whenever they are carried out. So a log of the commands is all that a restart needs.

A line of the log is the checksum of its text (CRC-32, eight hexadecimal digits), a blank, and the command as JSON. The
first line is a `LogHeader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from zlib import crc32

import msgspec

from dry_work.errors import CodecError
from dry_work.exchange.account import AccountSettings
from dry_work.orders.model import OrderRequest
from dry_work.wire.alpaca_rest import Replacement

FORMAT = "dry-work exchange log 1"

_CHECKSUM_LENGTH = 8


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag=lambda name: name, omit_defaults=True):
    """A line of the log; `do` says which."""


class LogHeader(_Record, frozen=True, kw_only=True):
    """What the commands belong to: they mean something else with other bars or rules."""

    format: str  # `FORMAT`
    fingerprint: str  # of the recording
    rules: str
    cash: Decimal  # of a new account
    changes_in_flight: bool = False
    matching: str = "bars"
    ticks: str = ""  # fingerprint of the trades and quotes, where orders are matched against them
    wash_trades: bool = False  # are taken
    options: bool = False  # synthetic chains trade
    assets: str = ""  # fingerprint of the list of assets
    partial_fills: float = 0.0
    seed: int = 0


class OpenAccount(_Record, frozen=True, kw_only=True):
    """Open the account of a key at its first use, or a sub-account, with what its owner was told to be."""

    key_id: str
    details: dict[str, Any] = {}


class Submit(_Record, frozen=True, kw_only=True):
    """Take an order."""

    key_id: str
    request: OrderRequest


class CountOrder(_Record, frozen=True, kw_only=True):
    """Take note of an order request that could not be read."""

    key_id: str


class Replace(_Record, frozen=True, kw_only=True):
    """Change an open order."""

    key_id: str
    order_id: str
    change: Replacement


class Cancel(_Record, frozen=True, kw_only=True):
    """Cancel an order."""

    key_id: str
    order_id: str


class CancelAll(_Record, frozen=True, kw_only=True):
    """Cancel every open order."""

    key_id: str


class ClosePosition(_Record, frozen=True, kw_only=True):
    """Submit the market order that closes a position, or a part of it."""

    key_id: str
    symbol: str
    qty: Decimal | None = None
    percentage: Decimal | None = None


class Exercise(_Record, frozen=True, kw_only=True):
    """Exercise a position in options."""

    key_id: str
    symbol: str


class ChangeSettings(_Record, frozen=True, kw_only=True):
    """Set an account."""

    key_id: str
    settings: AccountSettings


class SetWatchlist(_Record, frozen=True, kw_only=True):
    """Make a watchlist (without an id), or give one another name and other symbols."""

    key_id: str
    name: str
    symbols: tuple[str, ...]
    watchlist_id: str = ""


class DeleteWatchlist(_Record, frozen=True, kw_only=True):
    """Delete a watchlist."""

    key_id: str
    watchlist_id: str


class Register(_Record, frozen=True, kw_only=True):
    """Make the market wait for a consumer."""

    consumer: str
    key_id: str
    symbols: tuple[str, ...]
    resume: bool = False


class Leave(_Record, frozen=True, kw_only=True):
    """Wait for a consumer no longer."""

    consumer: str


class Report(_Record, frozen=True, kw_only=True):
    """A consumer is done with a slice."""

    consumer: str
    key_id: str
    number: int
    orders: int


class Advance(_Record, frozen=True, kw_only=True):
    """Move the market to the next slice of the recording."""

    number: int
    end_ns: int
    event_id: str = ""  # the last one before: with another one, something was carried out otherwise than it was then


class Bust(_Record, frozen=True, kw_only=True):
    """Take an execution back."""

    key_id: str
    execution_id: str


class CloseSlice(_Record, frozen=True, kw_only=True):
    """End the open slice."""

    number: int


class Revise(_Record, frozen=True, kw_only=True):
    """Correct a bar that has ended; orders are not matched again."""

    symbol: str
    start_ns: int
    values: dict[str, float]


Command = (
    OpenAccount
    | Submit
    | CountOrder
    | Replace
    | Cancel
    | CancelAll
    | ClosePosition
    | Exercise
    | ChangeSettings
    | SetWatchlist
    | DeleteWatchlist
    | Register
    | Leave
    | Report
    | Advance
    | Bust
    | CloseSlice
    | Revise
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(LogHeader | Command)


def encode_line(record: LogHeader | Command) -> bytes:
    """Return the line of the log that keeps a command."""
    text = _encoder.encode(record)
    return b"%08x %b\n" % (crc32(text), text)


def decode_log(data: bytes) -> tuple[LogHeader | None, list[Command], int]:
    """Read a log.

    Returns: the header (None when there is none yet), the commands, and how many bytes hold them. What stands behind
        is a line whose writing was cut off: nobody was told that it had been taken.

    Raises:
        CodecError: a line within the log is damaged; it is named.
    """
    lines = data.split(b"\n")
    tail = lines.pop()  # empty, or without its end
    records: list[LogHeader | Command] = []
    used = 0
    for number, line in enumerate(lines, start=1):
        record = _decode_line(line)
        if record is None:
            if any(_decode_line(later) is not None for later in [*lines[number:], tail]):
                raise CodecError(f"line {number} is damaged, and lines behind it are not")
            break
        records.append(record)
        used += len(line) + 1
    if not records:
        return None, [], 0
    header = records[0]
    if not isinstance(header, LogHeader):
        raise CodecError("line 1 is no header")
    return header, _check_commands(records[1:]), used


def _check_commands(records: Sequence[LogHeader | Command]) -> list[Command]:
    commands: list[Command] = []
    for number, record in enumerate(records, start=2):
        if isinstance(record, LogHeader):
            raise CodecError(f"line {number} is a second header")
        commands.append(record)
    return commands


def _decode_line(line: bytes) -> LogHeader | Command | None:
    checksum, text = line[:_CHECKSUM_LENGTH], line[_CHECKSUM_LENGTH + 1 :]
    if checksum != b"%08x" % crc32(text):
        return None
    try:
        record: LogHeader | Command = _decoder.decode(text)
    except msgspec.MsgspecError:
        return None
    return record
