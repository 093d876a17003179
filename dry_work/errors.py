"""Every exception that Dry Work raises on purpose.

DryWorkError
├── ConfigError            fix the setting and start again; the command line exits with 2
├── CodecError             one message could not be read; it is counted and the stream goes on
├── DataFileError          a recording cannot be used; says file and row; the command line exits with 2
├── StorageError           a folder or bucket cannot be read or written; the command line exits with 2
├── FeedError              a market-data source failed
│   └── FeedDisconnectedError   retried with backoff
├── BrokerError            the venue or the way to it
│   ├── OrderRejectedError      the venue said no; the order is Rejected
│   │   ├── InsufficientFundsError   the order is Margin
│   │   └── RiskRefusedError    the brake was on when the order was to leave; the order is Rejected
│   ├── RateLimitedError        retried after `retry_after_s`
│   ├── OutcomeUnknownError     the request may have been carried out; look it up before sending again
│   ├── VenueAuthError          credentials refused; nothing is retried at full speed
│   └── BrokerUnavailableError  retried with backoff
├── HubError               the hub or one of its sinks
├── LeaseHeldError         the agent id or the state directory belongs to a running process; exit 2
├── LookBackError          a line was read further back than it is kept; the run stops with 1
└── StrategyError          the user's strategy raised; the run stops with 1
"""

from __future__ import annotations


class DryWorkError(Exception):
    """Base of every error of Dry Work."""


class ConfigError(DryWorkError):
    """A setting, an option or an input file is not usable. Handled by the command line: exit 2."""


class CodecError(DryWorkError):
    """One message could not be read. The reader counts it and goes on."""

    def __init__(self, reason: str, *, data: bytes | str = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.prefix = data[:80]


class DataFileError(ConfigError):
    """A recording cannot be used as it is. Handled by the command line: exit 2."""

    def __init__(self, path: object, reason: str, *, row: int | None = None) -> None:
        self.path = str(path)
        self.row = row
        self.reason = reason
        where = self.path if row is None else f"{self.path}, row {row}"
        super().__init__(f"{where}: {reason}")


class StorageError(ConfigError):
    """A folder or bucket cannot be read or written. Handled by the command line: exit 2; by a recorder: it goes on.

    Args:
        location: folder, file or `gs://` address that it is about.
        reason: what happened and what to do, for people.
        retryable: True when the same call may work later, as without a network.
    """

    def __init__(self, location: object, reason: str, *, retryable: bool = False) -> None:
        self.location = str(location)
        self.reason = reason
        self.retryable = retryable
        super().__init__(f"{self.location}: {reason}")


class FeedError(DryWorkError):
    """A market-data source failed for good. Handled by the runner: the run stops with 1."""


class FeedDisconnectedError(FeedError):
    """A market-data connection was lost. Handled by its owner: reconnect with backoff."""


class BrokerError(DryWorkError):
    """The venue, or the way to it, failed.

    Args:
        message: what happened, for people.
        code: the venue's own error code, if it gave one.
        http_status: HTTP status of the answer, if there was one.
        request_id: the venue's id of the request, for its support.
    """

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.request_id = request_id

    def __str__(self) -> str:
        facts = [f"code {self.code}"] if self.code is not None else []
        if self.http_status is not None:
            facts.append(f"HTTP {self.http_status}")
        if self.request_id:
            facts.append(f"request {self.request_id}")
        return f"{self.message} ({', '.join(facts)})" if facts else self.message


class OrderRejectedError(BrokerError):
    """The venue refused the order. Handled by the broker: `notify_order` with Rejected."""


class InsufficientFundsError(OrderRejectedError):
    """The venue refused the order for lack of buying power. Handled by the broker: Margin."""


class RiskRefusedError(OrderRejectedError):
    """The brake was on when the order was to leave. Handled by the broker: Rejected, with `reject_code`."""

    def __init__(self, message: str, *, reject_code: str) -> None:
        super().__init__(message)
        self.reject_code = reject_code


class RateLimitedError(BrokerError):
    """Too many requests. Handled by the order worker: wait `retry_after_s`, then try again."""

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None, http_status: int | None = 429) -> None:
        super().__init__(message, http_status=http_status)
        self.retry_after_s = retry_after_s


class OutcomeUnknownError(BrokerError):
    """The request may have been carried out. Handled by the order worker: look it up before sending again."""

    retryable = True


class VenueAuthError(BrokerError):
    """The venue refused the credentials. Handled by the runner: no order traffic, exit 2 at start."""


class BrokerUnavailableError(BrokerError):
    """The venue did not take the request. Handled by the order worker: retry with backoff."""

    retryable = True


class HubError(DryWorkError):
    """The hub or one of its parts failed for good."""


class LeaseHeldError(ConfigError):
    """Another running process holds this agent id or state directory. Handled by the command line: exit 2."""


class LookBackError(DryWorkError):
    """A line was read further back than it is kept. Handled by the runner: the run stops with 1."""


class StrategyError(DryWorkError):
    """The user's strategy raised. Handled by the runner: everything is stopped, exit 1."""
