"""The bytes of a log: what is written is read, and nothing that was not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.recording.frames import (
    DIGEST_BYTES,
    END,
    FIRST_KIND,
    FRAME_BYTES,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    Damage,
    Frame,
    SegmentDecoder,
    SegmentHead,
    encode_frame,
    encode_head,
)

HEAD = SegmentHead(session="s1", segment=1, created_ns=1_718_112_600_000_000_000, writer="test", facts={"n": [1, "a"]})
TIMES = st.integers(-(2**63), 2**63 - 1)
FRAMES = st.lists(
    st.builds(Frame, st.integers(FIRST_KIND, 2**16 - 1), TIMES, TIMES, st.binary(max_size=60)), max_size=8
)


def encode(frames: list[Frame], head: SegmentHead = HEAD, *, closed: bool = False) -> bytes:
    data, digest = encode_head(head)
    for frame in [*frames, *([Frame(END, 0, 0, b"")] if closed else [])]:
        piece, digest = encode_frame(frame, digest)
        data += piece
    return data


def decode(data: bytes, sizes: list[int] | None = None) -> tuple[list[Frame], Damage | None, SegmentDecoder]:
    decoder = SegmentDecoder()
    frames: list[Frame] = []
    for size in sizes or []:
        frames.extend(decoder.feed(data[:size]))
        data = data[size:]
    frames.extend(decoder.feed(data))
    return frames, decoder.finish(), decoder


@given(FRAMES, st.lists(st.integers(0, 90), max_size=20))
def test_what_was_encoded_is_decoded_whatever_the_pieces(frames: list[Frame], sizes: list[int]) -> None:
    found, damage, decoder = decode(encode(frames), sizes)
    assert found == frames
    assert damage is None
    assert decoder.head == HEAD
    assert not decoder.is_closed


def test_the_end_says_that_the_segment_was_closed() -> None:
    found, damage, decoder = decode(encode([Frame(16, 1, 2, b"x")], closed=True))
    assert [frame.kind for frame in found] == [16, END]
    assert damage is None
    assert decoder.is_closed


@given(FRAMES, st.data())
def test_a_cut_file_gives_the_whole_frames_before_the_cut_and_says_so(frames: list[Frame], data: st.DataObject) -> None:
    whole = encode(frames)
    bounds = [len(encode(frames[:count])) for count in range(len(frames) + 1)]
    cut = data.draw(st.integers(0, len(whole)))
    found, damage, _ = decode(whole[:cut])
    expected = sum(bound <= cut for bound in bounds) - 1
    assert found == frames[: max(expected, 0)]
    if cut in bounds:
        assert damage is None
    else:
        assert damage is not None
        assert damage.kind == "truncated"
        assert damage.offset == max([bound for bound in bounds if bound <= cut], default=0)


@given(FRAMES, st.data())
def test_a_flipped_bit_is_found_and_no_wrong_frame_comes_out(frames: list[Frame], data: st.DataObject) -> None:
    whole = bytearray(encode(frames, closed=True))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    found, damage, _ = decode(bytes(whole))
    bounds = [len(encode(frames[:count])) for count in range(len(frames) + 1)]
    assert found == frames[: max(sum(bound <= place for bound in bounds) - 1, 0)]
    assert damage is not None
    # A flip in the length of the segment's head may promise more than the file has.
    kinds = ("checksum", "foreign", "version", "chain", *(("truncated",) if damage.offset == 0 else ()))
    assert damage.kind in kinds
    assert damage.offset <= place


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    for beginning in (b"", MAGIC, encode([])):
        found, damage, _ = decode(beginning + data)
        assert found == []
        assert damage is not None or not data


@given(FRAMES.filter(lambda frames: len(frames) > 1), st.data())
def test_a_frame_that_is_removed_moved_or_repeated_breaks_the_chain(frames: list[Frame], data: st.DataObject) -> None:
    head, digest = encode_head(HEAD)
    pieces = []
    for frame in frames:
        piece, digest = encode_frame(frame, digest)
        pieces.append(piece)
    place = data.draw(st.integers(0, len(frames) - 2))
    how = data.draw(st.sampled_from(["removed", "moved", "repeated"]))
    if how == "removed":
        changed = [*pieces[:place], *pieces[place + 1 :]]
        good = place
    elif how == "moved":
        changed = [*pieces[:place], pieces[place + 1], pieces[place], *pieces[place + 2 :]]
        good = place
    else:
        changed = [*pieces[: place + 1], *pieces[place:]]
        good = place + 1
    found, damage, _ = decode(head + b"".join(changed))
    assert found == frames[:good]
    assert damage is not None
    assert damage.kind == "chain"
    assert damage.offset == len(head) + sum(map(len, changed[:good]))


def test_an_edit_with_new_checksums_breaks_the_chain_at_the_next_frame() -> None:
    first, second = Frame(16, 1, 2, b"price 10"), Frame(16, 3, 4, b"price 11")
    head, digest = encode_head(HEAD)
    forged, forged_digest = encode_frame(Frame(16, 1, 2, b"price 99"), digest)
    _, honest_digest = encode_frame(first, digest)
    honest, _ = encode_frame(second, honest_digest)
    assert forged_digest != honest_digest
    found, damage, _ = decode(head + forged + honest)
    assert [frame.payload for frame in found] == [b"price 99"]
    assert damage is not None
    assert damage.kind == "chain"


def test_a_newer_version_and_a_foreign_file_are_told() -> None:
    newer = bytearray(encode([]))
    newer[len(MAGIC)] = 9
    assert str(decode(bytes(newer))[1]) == "byte 0: format version 9; this Dry Work reads version 1"
    assert str(decode(b"PAR1 and so on")[1]) == "byte 0: no log of Dry Work: it does not begin as one"
    assert str(decode(b"")[1]) == "byte 0: the file ends within its head, after 0 bytes"


def test_bytes_behind_the_end_are_damage() -> None:
    found, damage, _ = decode(encode([], closed=True) + b"more")
    assert [frame.kind for frame in found] == [END]
    assert damage is not None
    assert damage.kind == "chain"
    assert "4 bytes or more follow the end" in damage.reason


def test_zeros_that_a_machine_left_at_the_end_are_damage_behind_the_good_frames() -> None:
    frames = [Frame(16, 1, 2, b"x")]
    found, damage, _ = decode(encode(frames) + bytes(4096))
    assert found == frames
    assert damage is not None
    assert damage.kind == "checksum"


def test_nothing_is_decoded_after_damage() -> None:
    decoder = SegmentDecoder()
    assert list(decoder.feed(b"not a log at all")) == []
    assert list(decoder.feed(encode([Frame(16, 0, 0, b"x")]))) == []
    assert decoder.finish() is decoder.damage


def test_a_frame_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        encode_frame(Frame(70_000, 0, 0, b""), bytes(DIGEST_BYTES))
    with pytest.raises(ValueError, match="out of range"):
        encode_frame(Frame(16, 2**63, 0, b""), bytes(DIGEST_BYTES))
    with pytest.raises(ValueError, match="a payload of"):
        encode_frame(Frame(16, 0, 0, bytes(MAX_PAYLOAD_BYTES + 1)), bytes(DIGEST_BYTES))


def test_the_form_is_pinned() -> None:
    head = SegmentHead(session="s", segment=1, created_ns=0, writer="w")
    data, digest = encode_head(head)
    body = b'{"session":"s","segment":1,"created_ns":0,"writer":"w","chain":"","facts":{}}'
    assert data[:-4] == bytes.fromhex("44574c4f470d0a1a010000004d000000") + body
    assert data[-4:].hex() == "65e879b2"
    piece, after = encode_frame(Frame(16, 1, 2, b"abc"), digest)
    assert len(piece) == FRAME_BYTES + 3
    assert piece[:24].hex() == "030000001000000001000000000000000200000000000000"
    assert piece[24:].hex() == "c15e54f7616263ae470957eb80e42f7046ea82352a2866f0ccda99"
    assert piece.endswith(after)
