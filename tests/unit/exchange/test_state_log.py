"""The state directory: its log file, its lock, and what is said when it cannot be used."""

from __future__ import annotations

import errno
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dry_work.errors import ConfigError, LeaseHeldError
from dry_work.exchange import state_log
from dry_work.exchange.commands import FORMAT, CountOrder, LogHeader, OpenAccount, encode_line
from dry_work.exchange.state_log import StateLog

HEADER = LogHeader(format=FORMAT, fingerprint="f" * 64, rules="alpaca", cash=Decimal(1000))
FIRST, SECOND = OpenAccount(key_id="a"), CountOrder(key_id="a")


def write(folder: Path, *commands: Any) -> None:
    log = StateLog(folder)
    log.open(HEADER)
    for command in commands:
        log.append(command)
    log.close()


def read(folder: Path, header: LogHeader = HEADER) -> list[Any]:
    log = StateLog(folder)
    try:
        return list(log.open(header))
    finally:
        log.close()


def test_what_was_written_is_there_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write(folder, FIRST)
    write(folder, SECOND)
    assert read(folder) == [FIRST, SECOND]


def test_a_last_line_that_was_cut_off_is_removed_and_others_follow(tmp_path: Path) -> None:
    write(tmp_path, FIRST)
    with (tmp_path / state_log.LOG_NAME).open("ab") as file:
        file.write(encode_line(SECOND)[:-5])
    write(tmp_path, SECOND)
    assert read(tmp_path) == [FIRST, SECOND]


def test_a_log_of_which_not_even_the_header_was_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / state_log.LOG_NAME).write_bytes(encode_line(HEADER)[:30])
    write(tmp_path, FIRST)
    assert read(tmp_path) == [FIRST]


def test_the_directory_belongs_to_one_exchange(tmp_path: Path) -> None:
    log = StateLog(tmp_path)
    log.open(HEADER)
    with pytest.raises(LeaseHeldError, match=r"is in use by another exchange"):
        StateLog(tmp_path).open(HEADER)
    log.append(FIRST)
    log.close()
    log.close()
    assert read(tmp_path) == [FIRST]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "0" * 64}, r"data with fingerprint ffffffffffff…, now 000000000000…"),
        ({"rules": "backtrader"}, "--rules alpaca, now backtrader"),
        ({"cash": Decimal(5)}, "--cash 1000, now 5"),
        ({"changes_in_flight": True}, "--races off, now on"),
        ({"matching": "volume"}, "--matching bars, now volume"),
        ({"ticks": "ab"}, "trades and quotes with fingerprint none, now ab"),
        ({"wash_trades": True}, "--wash-trades off, now on"),
    ],
)
def test_a_log_of_something_else_is_refused_with_what_differs(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write(tmp_path, FIRST)
    with pytest.raises(ConfigError, match=f"was begun with {words}. Start it as before, or give another --state-dir"):
        read(tmp_path, replace(HEADER, **change))
    assert read(tmp_path, replace(HEADER, cash=Decimal("1000.00"))) == [FIRST]


def test_a_log_of_a_later_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / state_log.LOG_NAME).write_bytes(encode_line(replace(HEADER, format="later")))
    with pytest.raises(ConfigError, match="has the format 'later'"):
        read(tmp_path)


def test_a_damaged_log_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, FIRST, SECOND)
    path = tmp_path / state_log.LOG_NAME
    damaged = path.read_bytes().replace(b"OpenAccount", b"OpenAkkount")
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"exchange\.log: line 2 is damaged.*move the file away"):
        read(tmp_path)
    assert path.read_bytes() == damaged


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--state-dir .*file cannot be used: "):
        read(tmp_path / "file")


def test_a_line_that_could_not_be_written_as_a_whole_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StateLog(tmp_path)
    log.open(HEADER)
    log.append(FIRST)
    real_write = os.write
    calls: list[int] = []

    def fill_up(descriptor: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real_write(descriptor, bytes(data[:7]))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state_log.os, "write", fill_up)
        with pytest.raises(OSError, match="No space left"):
            log.append(SECOND)
    log.append(SECOND)
    log.close()
    assert read(tmp_path) == [FIRST, SECOND]
