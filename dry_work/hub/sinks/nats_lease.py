"""Who acts: of several hubs at one NATS server, one for each part. Event-loop only.

A lease is a key that its holder writes again and again. Who does not hold it watches the key's revision: when that has
stood still for the length of the lease, measured by the watcher's own clock, the holder is gone and the key is taken
over from that very revision, which only one can do.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from dry_work.clock import Clock

_log = structlog.get_logger(__name__)


class Lease:
    """One part's lease.

    Args:
        key: of the lease.
        owner: name of this hub, of its own for each start.
        length_s: a holder that was silent for so long has lost it.
    """

    def __init__(self, key: str, *, owner: str, length_s: float, clock: Clock) -> None:
        self.key = key
        self.is_held = False
        self.is_other_alive = False  # the holder was heard of since we look
        self.note = ""  # written with the lease, for the one that takes it over
        self.note_of_other = ""  # what the holder wrote last
        self._owner = owner
        self._length_s = length_s
        self._clock = clock
        self._revision = 0
        self._seen_s: float | None = None  # when the present revision was seen first
        self._renewed_s = 0.0

    async def tend(self, bucket: KeyValue) -> bool:
        """Renew or try to get the lease; return whether it is held.

        Raises:
            nats.errors.Error: NATS did not answer. A lease stays held until its length is over.
        """
        if self.is_held:
            await self._renew(bucket)
        else:
            await self._watch(bucket)
        return self.is_held

    def check(self) -> bool:
        """Tell whether the lease is held still: one that could not be renewed in time is not."""
        if self.is_held and self._clock.monotonic() - self._renewed_s >= self._length_s:
            self._lose("it was not renewed in time")
        return self.is_held

    async def give_up(self, bucket: KeyValue) -> None:
        """Let another hub have it at once."""
        if not self.is_held:
            return
        self.is_held = False
        try:
            await bucket.update(self.key, self._encode(""), last=self._revision)
        except KeyWrongLastSequenceError:
            return

    async def _renew(self, bucket: KeyValue) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._renewed_s < self._length_s / 3:
            return
        try:
            revision = await bucket.update(self.key, self._encode(self._owner), last=self._revision)
        except KeyWrongLastSequenceError:
            if not await self._is_ours(bucket):
                self._lose("another hub has it")
            return
        self._note_held(revision, now_s)

    async def _is_ours(self, bucket: KeyValue) -> bool:
        """Find out after a write was refused: its first try may have been taken, or the bucket may be a new one."""
        try:
            entry = await bucket.get(self.key)
        except KeyNotFoundError:
            self._revision = 0
            return True
        if self._decode(entry.value) == self._owner:
            self._revision = entry.revision or 0
            return True
        return False

    async def _watch(self, bucket: KeyValue) -> None:
        now_s = self._clock.monotonic()
        try:
            entry = await bucket.get(self.key)
        except KeyNotFoundError:
            await self._take(bucket, 0, now_s)
            return
        revision = entry.revision or 0
        if self._decode(entry.value) in ("", self._owner):
            await self._take(bucket, revision, now_s)
        elif self._seen_s is None or revision != self._revision:
            self.is_other_alive = self._seen_s is not None
            if self._seen_s is None:
                _log.info("another hub acts, or has acted until now: waiting", lease=self.key)
            self._revision, self._seen_s = revision, now_s
        elif now_s - self._seen_s >= self._length_s:
            await self._take(bucket, revision, now_s)

    async def _take(self, bucket: KeyValue, revision: int, now_s: float) -> None:
        try:
            taken = await bucket.update(self.key, self._encode(self._owner), last=revision)
        except KeyWrongLastSequenceError:
            return
        self._note_held(taken, now_s)
        _log.info("this hub acts", lease=self.key)

    def _encode(self, owner: str) -> bytes:
        return f"{owner}\n{self.note}".encode()

    def _decode(self, value: bytes | None) -> str:
        """Return the holder's name; remember the note of another."""
        owner, _, note = (value or b"").decode("utf-8", "replace").partition("\n")
        if owner != self._owner:
            self.note_of_other = note
        return owner

    def _note_held(self, revision: int, now_s: float) -> None:
        self._revision, self._renewed_s = revision, now_s
        self.is_held, self.is_other_alive = True, False

    def _lose(self, reason: str) -> None:
        self.is_held = False
        self._seen_s = None
        _log.warning("this hub does not act any more", lease=self.key, reason=reason)


def build_leases(parts: Iterable[str], *, prefix: str, owner: str, length_s: float, clock: Clock) -> dict[str, Lease]:
    """Return a lease for each of `parts`, by part."""
    return {part: Lease(f"lease.{prefix}.{part}", owner=owner, length_s=length_s, clock=clock) for part in parts}
