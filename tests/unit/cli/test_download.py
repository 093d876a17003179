from __future__ import annotations

import pytest

from dry_work.alpaca.download import DownloadProgress, DownloadResult
from dry_work.cli.download import describe_duration, describe_end, describe_progress


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3599, "59 min 59 s"), (7384, "2 h 3 min")]
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


def test_a_line_tells_how_far_it_is() -> None:
    progress = DownloadProgress(units=40, units_done=10, rows=200_000, working_on="SPY trades 2024-01-02")
    assert describe_progress(progress, seconds=20.0) == (
        "10 of 40 units, 200,000 rows, 10,000 rows/s, about 1 min 0 s left; SPY trades 2024-01-02"
    )


def test_a_line_tells_what_is_waited_for() -> None:
    progress = DownloadProgress(units=2, working_on="SPY 1m bars 2024-01-02", waiting_for="the request limit, 3.0 s")
    assert describe_progress(progress, seconds=1.0) == (
        "0 of 2 units, 0 rows; SPY 1m bars 2024-01-02; waiting for the request limit, 3.0 s"
    )


def test_the_end_tells_how_to_go_on_after_a_stop() -> None:
    stopped = DownloadResult(stopped=True, units_done=3, rows=1200, refused={})
    assert describe_end(stopped, units=9, seconds=2.0, files=4, out="data") == (
        "stopped: 3 of 9 units done, 1,200 rows in 2.0 s, 4 files written in data; the same command goes on from here"
    )
    done = DownloadResult(stopped=False, units_done=9, rows=1200, refused={})
    assert describe_end(done, units=9, seconds=2.0, files=4, out="data").startswith("downloaded: 1,200 rows in 2.0 s")
