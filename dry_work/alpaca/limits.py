"""How many requests a key may send: a token bucket that learns from the answers' headers.

`RateLimit` is pure: its times are passed in, and one thread at a time uses it. `RateLimiter` is the thread-safe shell
that waits, the most urgent first. One key has one limiter for each API (trading, market data), however many clients use
it: Alpaca counts by account and API. `shared_limiter` gives all clients of a process the same one.

Alpaca tells in every answer `X-RateLimit-Limit` (requests a minute), `X-RateLimit-Remaining` and `X-RateLimit-Reset`
(seconds since 1970), and refuses with 429 what goes beyond. https://docs.alpaca.markets/docs/usage-limits-api-calls
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from enum import IntEnum
from weakref import WeakValueDictionary

from dry_work.addresses import is_alpaca_url
from dry_work.clock import SECOND_NS, Clock, SystemClock

DEFAULT_LIMIT = 200  # requests a minute, what Alpaca grants without a subscription
WINDOW_S = 60.0
REFUSED_WAIT_S = 1.0  # after a 429 that names no time

CLAIM_S = 5.0  # who was told to wait comes back within this time after it, and is not overtaken until then

_LONGEST_RESET_S = 2 * WINDOW_S  # a reset further away is a wrong clock
_LEAST_EPOCH_S = 1e9  # a reset below is meant as seconds from now


class Priority(IntEnum):
    """How urgent a request is. The less urgent leave a share of the budget to the others."""

    BRAKE = 0  # halting and flattening
    ORDERS = 1  # orders, replacements and cancellations
    LOOK_UPS = 2  # what became of an order
    POLLING = 3  # account, history and all else


# Share of the limit that a request leaves to more urgent ones: what stops a runaway strategy has to get through.
SHARED = {Priority.BRAKE: 0.0, Priority.ORDERS: 0.05, Priority.LOOK_UPS: 0.1, Priority.POLLING: 0.25}
UNSHARED = dict.fromkeys(Priority, 0.0)


class RateLimit:
    """The budget of one key. Pure; times are seconds of a clock that never goes back.

    Every request is taken by `take`, and then either answered (`observe`) or lost (`drop`).

    Args:
        limit: requests a minute until an answer tells it. None is for a venue that need not limit at all: only what
            its last answer says remains, until its reset, is kept to.
        shares: share of the limit that each priority leaves to more urgent ones.
    """

    def __init__(self, limit: int | None = DEFAULT_LIMIT, *, shares: Mapping[Priority, float] = SHARED) -> None:
        self._predicts = limit is not None
        limit = DEFAULT_LIMIT if limit is None else limit
        if limit < 1:
            raise ValueError(f"limit {limit} is below 1")
        if any(not 0 <= share < 1 for share in shares.values()):
            raise ValueError(f"shares {dict(shares)} are not all from 0 up to 1")
        self.limit = limit
        self.in_flight = 0
        self._shares = dict(shares)
        self._tokens = float(limit) if self._predicts else math.inf
        self._updated_s: float | None = None
        self._blocked_until_s = -math.inf
        self._reset_at_s = math.inf  # when the venue's window begins anew

    def wait_s(self, now_s: float, priority: Priority = Priority.ORDERS) -> float:
        """Return the seconds until a request may be sent, 0 when it may be sent now."""
        self._refill(now_s)
        if now_s < self._blocked_until_s:
            return self._blocked_until_s - now_s
        missing = self._threshold(priority) - self._tokens
        if missing <= 0:
            return 0.0
        if not self._predicts:
            return max(min(self._reset_at_s - now_s, WINDOW_S), 1e-6)
        return max(min(missing * WINDOW_S / self.limit, self._reset_at_s - now_s), 1e-6)

    def take(self, now_s: float) -> None:
        """Count a request that is being sent."""
        self._refill(now_s)
        self._tokens -= 1
        self.in_flight += 1

    def drop(self) -> None:
        """Note that a request ended without an answer; it stays counted."""
        self.in_flight = max(self.in_flight - 1, 0)

    def observe(self, status: int, headers: Mapping[str, str], *, now_s: float, time_s: float) -> None:
        """Learn from an answer.

        Args:
            status: of HTTP.
            headers: of the answer; names in any case.
            now_s: of the clock that never goes back.
            time_s: seconds since 1970, for headers that name a time; the answer's own `Date` goes first.
        """
        self.drop()
        self._refill(now_s)
        lowered = {name.lower(): value for name, value in headers.items()}
        remaining = _parse_count(lowered.get("x-ratelimit-remaining"))
        limit = _parse_count(lowered.get("x-ratelimit-limit"))
        reset_s = parse_reset(lowered, time_s=time_s)
        if limit and limit != self.limit:
            self.limit = limit
            if self._predicts:
                # The tokens were those of another limit: what remains is known, or it is all of it.
                self._tokens = float(limit if remaining is None else remaining) - self.in_flight
        if reset_s is not None:
            self._reset_at_s = now_s + reset_s
        if remaining is not None and (self._predicts or reset_s is not None):
            known = float(remaining - self.in_flight)
            self._tokens = min(self._tokens, known) if self._predicts else known
            if remaining == 0 and reset_s is not None:
                self._block(now_s + reset_s)
        if status == 429:
            self._take_refusal(parse_retry_after(lowered, time_s=time_s), remaining, reset_s, now_s=now_s)

    def _take_refusal(
        self, retry_s: float | None, remaining: int | None, reset_s: float | None, *, now_s: float
    ) -> None:
        # With something left, it is not the budget that is spent, and its reset says nothing.
        is_spent = not remaining
        if retry_s is None and is_spent:
            retry_s = reset_s
        if self._predicts:
            if is_spent:
                self._tokens = min(self._tokens, 0.0)
            self._block(now_s + max(retry_s or 0.0, REFUSED_WAIT_S))
        elif retry_s is not None:
            self._block(now_s + retry_s)

    def _block(self, until_s: float) -> None:
        self._blocked_until_s = max(self._blocked_until_s, until_s)

    def _threshold(self, priority: Priority) -> float:
        """Return the tokens that have to be there; at least one, and never more than the bucket holds."""
        return min(1 + self._shares.get(priority, 0.0) * self.limit, float(self.limit))

    def _refill(self, now_s: float) -> None:
        if self._updated_s is None:
            self._updated_s = now_s
        if now_s >= self._reset_at_s:
            self._tokens = float(self.limit - self.in_flight)
            self._reset_at_s = math.inf
        elif now_s > self._updated_s and self._predicts:
            grown = self._tokens + (now_s - self._updated_s) * self.limit / WINDOW_S
            self._tokens = max(self._tokens, min(grown, float(self.limit)))
        if now_s >= self._blocked_until_s > self._updated_s:
            self._tokens = max(self._tokens, 1.0)  # the venue named this time itself
        self._updated_s = max(now_s, self._updated_s)


class RateLimiter:
    """A `RateLimit` for threads: the most urgent request goes first, those of one priority in their order.

    Who has waited for a whole window needs to leave no more than an order does, so that nobody waits for ever.
    """

    def __init__(self, limit: RateLimit | None = None, *, clock: Clock | None = None) -> None:
        self._limit = limit or RateLimit()
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []  # heap of (priority, number)
        self._claims: dict[Priority, float] = {}  # until when those are waited for who look again by themselves
        self._number = 0

    @property
    def requests_per_minute(self) -> int:
        """The limit as it is known."""
        return self._limit.limit

    def try_take(self, priority: Priority = Priority.ORDERS) -> float:
        """Take a request and return 0, or return the seconds after which to try again.

        Until then, and for `CLAIM_S` after it, nobody who is less urgent goes first.
        """
        with self._changed:
            if self._waiting and self._waiting[0][0] < priority:
                return REFUSED_WAIT_S / 10
            now_s = self._clock.monotonic()
            wait_s = self._claimed_s(priority, now_s) or self._take(priority)
            if wait_s:
                self._claims[priority] = now_s + wait_s + CLAIM_S
            return wait_s

    def acquire(
        self,
        priority: Priority = Priority.ORDERS,
        *,
        timeout_s: float,
        is_abandoned: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Take a request, after waiting for at most `timeout_s` seconds; tell whether it was taken.

        Args:
            priority: of the request.
            timeout_s: longest wait.
            is_abandoned: tells that the request is not wanted any more; asked again after `wake`.
        """
        with self._changed:
            since_s = self._clock.monotonic()
            self._number += 1
            mine = (int(priority), self._number)
            heapq.heappush(self._waiting, mine)
            try:
                while not is_abandoned():
                    now_s = self._clock.monotonic()
                    aged_s = since_s + WINDOW_S - now_s
                    if self._waiting[0] != mine:
                        wait_s = math.inf
                    elif aged_s <= 0:
                        wait_s = self._take(min(priority, Priority.ORDERS))
                    else:
                        wait_s = min(self._claimed_s(priority, now_s) or self._take(priority), aged_s)
                    if not wait_s:
                        return True
                    left_s = since_s + timeout_s - now_s
                    if left_s <= 0:
                        return False
                    self._changed.wait(min(wait_s, left_s))
                return False
            finally:
                self._waiting.remove(mine)
                heapq.heapify(self._waiting)
                self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait ask whether they are abandoned."""
        with self._changed:
            self._changed.notify_all()

    def observe(self, status: int, headers: Mapping[str, str]) -> None:
        """Learn from the answer to a request that was taken."""
        with self._changed:
            time_s = self._clock.time_ns() / SECOND_NS
            self._limit.observe(status, headers, now_s=self._clock.monotonic(), time_s=time_s)
            self._changed.notify_all()

    def drop(self) -> None:
        """Note that a request that was taken ended without an answer."""
        with self._changed:
            self._limit.drop()
            self._changed.notify_all()

    def _claimed_s(self, priority: Priority, now_s: float) -> float:
        """Return the seconds for which somebody more urgent is waited for."""
        return max([0.0, *(until_s - now_s for who, until_s in self._claims.items() if who < priority)])

    def _take(self, priority: Priority) -> float:
        now_s = self._clock.monotonic()
        wait_s = self._limit.wait_s(now_s, priority)
        if not wait_s:
            self._limit.take(now_s)
            self._claims.pop(priority, None)
        return wait_s


_limiters: WeakValueDictionary[tuple[str, str, str], RateLimiter] = WeakValueDictionary()
_limiters_lock = threading.Lock()


def shared_limiter(url: str, key: str, *, api: str = "trading") -> RateLimiter:
    """Return the limiter of a key, the same one for all its clients in this process as long as one of them holds it.

    Args:
        url: base URL of the API. Alpaca's own begin with `DEFAULT_LIMIT`; others limit only by their answers.
        key: id of the key.
        api: trading or data, which Alpaca counts apart.
    """
    with _limiters_lock:
        name = (url.rstrip("/"), key, api)
        limiter = _limiters.get(name)
        if limiter is None:
            limiter = _limiters[name] = RateLimiter(RateLimit(DEFAULT_LIMIT if is_alpaca_url(url) else None))
        return limiter


def parse_retry_after(headers: Mapping[str, str], *, time_s: float) -> float | None:
    """Return the seconds that `Retry-After` asks to wait, given as seconds or as a date; None without a usable one.

    `headers` have names in lower case.
    """
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        at_s = _parse_date(text)
        return None if at_s is None else max(at_s - _server_time(headers, time_s), 0.0)
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def parse_reset(headers: Mapping[str, str], *, time_s: float) -> float | None:
    """Return the seconds until `X-RateLimit-Reset`, at most two windows; None without a usable one.

    `headers` have names in lower case.
    """
    try:
        at_s = float(headers.get("x-ratelimit-reset", ""))
    except ValueError:
        return None
    if not math.isfinite(at_s) or at_s < 0:
        return None
    seconds = at_s - _server_time(headers, time_s) if at_s >= _LEAST_EPOCH_S else at_s
    return min(max(seconds, 0.0), _LONGEST_RESET_S)


def _server_time(headers: Mapping[str, str], time_s: float) -> float:
    """Return the server's time, so that a wrong clock here does no harm."""
    date_s = _parse_date(headers.get("date", ""))
    return time_s if date_s is None else date_s


def _parse_date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _parse_count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None
