"""RESP: commands out, replies in, wherever they are cut."""

from __future__ import annotations

import itertools
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.errors import CodecError
from dry_work.wire.redis_protocol import ReplyError, ReplyReader, encode_command

REPLIES = (
    b"+OK\r\n:-12\r\n$5\r\na\r\nbc\r\n$0\r\n\r\n$-1\r\n-WRONGTYPE no\r\n"
    b"*0\r\n*-1\r\n*2\r\n*2\r\n:1\r\n$1\r\nx\r\n+y\r\n"
)
VALUES = ["OK", -12, b"a\r\nbc", b"", None, ReplyError("WRONGTYPE no"), [], None, [[1, b"x"], "y"]]


def test_a_command_is_a_list_of_strings() -> None:
    assert encode_command(b"SET", b"a b", b"\r\n") == b"*3\r\n$3\r\nSET\r\n$3\r\na b\r\n$2\r\n\r\n\r\n"


@given(st.lists(st.integers(1, len(REPLIES)), max_size=8))
def test_replies_are_the_same_wherever_they_are_cut(cuts: list[int]) -> None:
    reader = ReplyReader()
    found: list[object] = []
    edges = [0, *sorted(cuts), len(REPLIES)]
    for start, end in itertools.pairwise(edges):
        found += reader.feed(REPLIES[start:end])
    assert found == VALUES


def test_an_error_has_a_code() -> None:
    assert ReplyError("NOAUTH Authentication required.").code == "NOAUTH"


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n",
        b":x\r\n",
        b"$-2\r\n",
        b"$99999999999999999999999\r\n",
        b"*999999999\r\n",
        b"$1\r\nabc\r\n",
        b"*1\r\n" * 9,
        b"+" + b"x" * 70_000,
    ],
)
def test_what_is_no_reply_is_an_error(data: bytes) -> None:
    with pytest.raises(CodecError):
        ReplyReader().feed(data)


def test_random_bytes_never_crash_the_reader() -> None:
    rng = random.Random(7)
    marks = b"+-:$*\r\n0123456789ab"
    inputs, refused = int(os.environ.get("DRY_WORK_FUZZ_INPUTS", "5000")), 0
    for _ in range(inputs):
        reader = ReplyReader()
        try:
            for _ in range(3):
                reader.feed(bytes(rng.choices(marks, k=rng.randrange(40))))
        except CodecError:
            refused += 1
    assert 0 < refused < inputs
