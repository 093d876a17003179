"""What became of the newest bars of a symbol, one letter each, from what was drawn of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

MINUTES_SHOWN = 60

ARRIVED, LATE, FILLED, MISSING, QUIET, HALTED, CLOSED = "a", "l", "f", "m", "q", "h", "c"

Pause = tuple[float, float]  # of an exchange's halt: begin and end in ms; 0: it lasts


def trace_minutes(
    ends_ms: Iterable[float],
    *,
    odd: Mapping[int, str],
    pauses: Iterable[Pause],
    since_ms: int,
    until_ms: int,
    length_ms: int,
    is_open: Callable[[int], bool],
    absent: str = MISSING,
) -> str:
    """Return one letter for each bar that could end up to a moment, the oldest first, `MINUTES_SHOWN` at most.

    Args:
        ends_ms: of the bars that are there.
        odd: letters of those among them that did not come with their slice, by end.
        since_ms: end of the first bar that was to come.
        until_ms: end of the newest slice.
        is_open: tells whether the market is open at a time in ms.
        absent: letter of a bar that is not there though the market is open.
    """
    there = {int(end_ms) for end_ms in ends_ms}
    halts = list(pauses)
    letters = []
    for back in range(MINUTES_SHOWN - 1, -1, -1):
        end_ms = until_ms - back * length_ms
        start_ms = end_ms - length_ms
        if end_ms < since_ms:
            continue
        if end_ms in there:
            letters.append(odd.get(end_ms, ARRIVED))
        elif not is_open(start_ms):
            letters.append(CLOSED)
        elif any(begin_ms <= start_ms and (not over_ms or start_ms < over_ms) for begin_ms, over_ms in halts):
            letters.append(HALTED)
        else:
            letters.append(absent)
    return "".join(letters)
