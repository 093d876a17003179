"""Latencies of stages: the last some hundred of each. One thread."""

from __future__ import annotations

from collections import deque

from dry_work.dashboard.snapshot import StageLatency

KEPT = 500


class StageTimes:
    """Keeps the newest times of each stage, in the order of `stages`."""

    def __init__(self, stages: tuple[str, ...], *, kept: int = KEPT) -> None:
        self._times: dict[str, deque[float]] = {stage: deque(maxlen=kept) for stage in stages}
        self._counts = dict.fromkeys(stages, 0)

    def add(self, stage: str, time_ms: float) -> None:
        """Add a time."""
        self._times[stage].append(time_ms)
        self._counts[stage] += 1

    def read(self) -> tuple[StageLatency, ...]:
        """Return the stages that were gone through."""
        found = []
        for stage, times in self._times.items():
            if not times:
                continue
            ordered = sorted(times)
            found.append(
                StageLatency(
                    stage=stage,
                    last_ms=times[-1],
                    p50_ms=ordered[(len(ordered) - 1) // 2],
                    p99_ms=ordered[(len(ordered) - 1) * 99 // 100],
                    count=self._counts[stage],
                )
            )
        return tuple(found)
