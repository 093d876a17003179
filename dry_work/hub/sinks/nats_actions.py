"""Orders and cancellations that came over NATS, carried out at Alpaca. Event-loop only.

Each action ends with an outcome that its sender sees. A client order id makes at most one order: what was sent without
an answer, and what was delivered before, is looked up before it is sent again, and Alpaca refuses an id that it knows.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog

from dry_work.backoff import Backoff
from dry_work.clock import Clock
from dry_work.errors import (
    BrokerError,
    CodecError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    VenueAuthError,
)
from dry_work.hub.ports import OrderAccount
from dry_work.hub.sinks.nats_settings import NatsSettings
from dry_work.wire.nats_subjects import CANCEL, CANCEL_ALL, ORDER, Action
from dry_work.wire.protobuf_tradesvc import check_client_order_id, decode_trade, is_same_order
from dry_work.wire.pubsub import encode_time

ACCEPTED, DUPLICATE, REFUSED, GAVE_UP = "accepted", "duplicate", "refused", "gave_up"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_CANCELED = ("canceled", "pending_cancel")
_LONGEST_WAIT_S = 30.0
_CANCELS = "nats cancels"

_log = structlog.get_logger(__name__)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an action."""

    outcome: str  # accepted, duplicate, refused, gave_up
    order_id: str = ""
    code: int | None = None  # Alpaca's
    http_status: int | None = None
    message: str = ""
    attempts: int = 0  # requests that asked Alpaca to do it


class ActionStoppedError(Exception):
    """The hub stops: the action waits in NATS for the next one."""


class _UndecidedError(Exception):
    """Alpaca does not say what became of it."""

    def __init__(self, attempts: int, error: BrokerError) -> None:
        super().__init__(str(error))
        self.attempts = attempts
        self.error = error


class ActionDesk:
    """Carries out actions at one account."""

    def __init__(self, account: OrderAccount, settings: NatsSettings, *, clock: Clock, rng: random.Random) -> None:
        self._account = account
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._stopping = asyncio.Event()
        self._running: dict[str, asyncio.Event] = {}  # orders under way by client order id
        self.refusal = ""  # why the credentials were refused
        self.retries = 0

    def stop(self) -> None:
        """Let actions that wait for another try end now; requests under way are finished."""
        self._stopping.set()

    async def run(self, action: Action, data: bytes, *, deliveries: int) -> Outcome | None:
        """Carry out an action.

        Args:
            action: what its subject says.
            data: its payload.
            deliveries: how often it was delivered, this time included.

        Returns:
            What became of it; None when Alpaca does not say, and a later delivery may find out.

        Raises:
            ActionStoppedError: the hub stops.
        """
        try:
            if action.kind == ORDER:
                return await self._order(action.token, data, is_new=deliveries <= 1)
            return await self._cancel(action.token, is_new=deliveries <= 1)
        except CodecError as error:
            return Outcome(outcome=REFUSED, message=error.reason)
        except _UndecidedError as error:
            _log.warning("Alpaca did not answer", action=action.kind, token=action.token, reason=str(error))
            return None

    async def conclude(self, action: Action, data: bytes, *, attempts: int = 0) -> Outcome | None:
        """Return the outcome of an action that is delivered no more; None when it cannot be found out now."""
        if action.kind == CANCEL:
            return Outcome(outcome=GAVE_UP, message="it was delivered too often without success", attempts=attempts)
        try:
            body = decode_trade(data, client_order_id=action.token)
            found = await self._find(action.token)
        except CodecError as error:
            return Outcome(outcome=REFUSED, message=error.reason)
        except (BrokerError, TimeoutError):
            return None
        if found is None:
            message = "it was delivered too often without success; there is no such order"
            return Outcome(outcome=GAVE_UP, message=message, attempts=attempts)
        return _judge(body, found, DUPLICATE, attempts)

    def give_up(self, action: Action) -> Outcome:
        """Return the outcome of an action after its last delivery, if Alpaca still does not say."""
        known = " It may have been carried out: look the order up." if action.kind == ORDER else ""
        return Outcome(outcome=GAVE_UP, message=f"Alpaca did not answer.{known}")

    # --- orders

    async def _order(self, client_order_id: str, data: bytes, *, is_new: bool) -> Outcome:
        body = decode_trade(data, client_order_id=client_order_id)
        while (other := self._running.get(client_order_id)) is not None:  # sent twice, and both came
            await other.wait()
        done = self._running[client_order_id] = asyncio.Event()
        try:
            return await self._submit(body, client_order_id, must_look=not is_new)
        finally:
            del self._running[client_order_id]
            done.set()

    async def _submit(self, body: dict[str, Any], client_order_id: str, *, must_look: bool) -> Outcome:
        tries = self._tries()
        found_as = DUPLICATE
        was_taken = False
        while True:
            is_sending = False
            try:
                if must_look:
                    found = await self._find(client_order_id)
                    if found is not None:
                        return _judge(body, found, found_as, tries.count)
                    must_look = False
                is_sending = True
                tries.count += 1
                answer = await self._call("POST", "/orders", body, lane=f"nats orders {body['symbol']}")
                return Outcome(outcome=ACCEPTED, order_id=_id_of(answer), attempts=tries.count)
            except OrderRejectedError as error:
                if not is_sending or not _is_taken(error):
                    return _refuse(error, tries.count)
                must_look = True
                if was_taken:  # and was not found just now: the look-up is behind
                    await tries.wait(error)
                was_taken = True
            except BrokerError as error:
                if is_sending and isinstance(error, OutcomeUnknownError):
                    must_look, found_as = True, ACCEPTED
                await tries.wait(error)

    async def _find(self, client_order_id: str) -> Mapping[str, Any] | None:
        query = {"client_order_id": client_order_id}
        try:
            answer = await self._call("GET", "/orders:by_client_order_id", query)
        except OrderRejectedError as error:
            if error.http_status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return answer if isinstance(answer, Mapping) else None

    # --- cancellations

    async def _cancel(self, token: str, *, is_new: bool) -> Outcome:
        tries = self._tries()
        while True:
            try:
                if token.upper() == CANCEL_ALL:
                    tries.count += 1
                    return _judge_all(await self._call("DELETE", "/orders", lane=_CANCELS), tries.count)
                return await self._cancel_one(token, tries, is_new=is_new)
            except OrderRejectedError as error:
                return _refuse(error, tries.count)
            except BrokerError as error:
                is_new = is_new and not isinstance(error, OutcomeUnknownError)
                await tries.wait(error)

    async def _cancel_one(self, token: str, tries: _Tries, *, is_new: bool) -> Outcome:
        check_client_order_id(token)
        if (other := self._running.get(token)) is not None:
            await other.wait()
        order: Mapping[str, Any] | None = None
        if _UUID.fullmatch(token):
            order_id = token
        else:
            order = await self._find(token)
            if order is None:
                return _refuse_unknown(token, tries.count)
            order_id = _id_of(order)
        tries.count += 1
        try:
            await self._call("DELETE", f"/orders/{order_id}", lane=_CANCELS)
        except OrderRejectedError as error:
            if error.http_status == HTTPStatus.NOT_FOUND and order is None:
                order = await self._find(token)
                if order is None:
                    return _refuse_unknown(token, tries.count)
                order_id = _id_of(order)
                try:
                    await self._call("DELETE", f"/orders/{order_id}", lane=_CANCELS)
                except OrderRejectedError as second:
                    return await self._judge_refused(order_id, second, tries.count, is_new=is_new)
            else:
                return await self._judge_refused(order_id, error, tries.count, is_new=is_new)
        return Outcome(outcome=ACCEPTED, order_id=order_id, attempts=tries.count)

    async def _judge_refused(self, order_id: str, error: OrderRejectedError, attempts: int, *, is_new: bool) -> Outcome:
        """Tell an order that an earlier delivery has canceled from one that cannot be canceled."""
        if not is_new and error.http_status == HTTPStatus.UNPROCESSABLE_ENTITY:
            order = await self._call("GET", f"/orders/{order_id}")
            if isinstance(order, Mapping) and order.get("status") in _CANCELED:
                return Outcome(outcome=DUPLICATE, order_id=order_id, attempts=attempts)
        return msgspec.structs.replace(_refuse(error, attempts), order_id=order_id)

    # --- requests

    async def _call(self, method: str, path: str, data: Mapping[str, Any] | None = None, *, lane: str = "") -> Any:
        timeout_s = self._settings.processing_timeout_s
        answer = await self._account.call(method, path, data, lane=lane, timeout_s=timeout_s)
        self.refusal = ""
        return answer

    def _tries(self) -> _Tries:
        return _Tries(self, self._settings, self._clock, self._rng)

    async def pause(self, seconds: float) -> None:
        """Wait for another try.

        Raises:
            ActionStoppedError: the hub stops.
        """
        if not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                return
        raise ActionStoppedError


class _Tries:
    """The tries of one action."""

    def __init__(self, desk: ActionDesk, settings: NatsSettings, clock: Clock, rng: random.Random) -> None:
        self.count = 0
        self._desk = desk
        self._settings = settings
        self._clock = clock
        self._left = settings.retry_limit
        self._rng = rng
        delay_s = settings.retry_delay_s
        self._backoff = Backoff(rng, initial_s=delay_s, cap_s=max(_LONGEST_WAIT_S, delay_s), jitter=0.2)

    async def wait(self, error: BrokerError) -> None:
        """Wait for the next try after a failure.

        Raises:
            ActionStoppedError: the hub stops.
            _UndecidedError: there have been enough.
        """
        self._desk.retries += 1
        if isinstance(error, VenueAuthError):
            # Nothing of this account works: no try is used up, and it is not hammered.
            if not self._desk.refusal:
                _log.error("the credentials were refused: orders wait", reason=str(error))
            self._desk.refusal = str(error)
            await self._desk.pause(self._settings.auth_retry_s * self._rng.uniform(0.9, 1.1))
            return
        if self._left <= 0:
            raise _UndecidedError(self.count, error)
        self._left -= 1
        wait_s = self._backoff.next_wait_s(self._clock.monotonic())
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            wait_s = max(wait_s, error.retry_after_s)
        await self._desk.pause(wait_s)


def encode_result(action: Action, outcome: Outcome, *, at_ns: int) -> bytes:
    """Return an outcome as its sender gets it, JSON."""
    name = "id" if action.kind == CANCEL else "client_order_id"
    return msgspec.json.encode(
        {
            "action": action.kind,
            name: action.token,
            "outcome": outcome.outcome,
            "order_id": outcome.order_id,
            "code": outcome.code,
            "http_status": outcome.http_status,
            "message": outcome.message,
            "attempts": outcome.attempts,
            "at": encode_time(at_ns),
        }
    )


def refuse_unmatched(action: Action) -> Outcome:
    """Return the outcome of an action whose subject no consumer takes."""
    if action.kind == ORDER:
        message = "a client order id is one token of the subject: it has no dot, and is not empty"
    elif action.kind == CANCEL:
        message = "an order id is one token of the subject: it has no dot, and is not empty"
    else:
        message = "no action has this subject: expected orders.<client order id>, cancel.<order id> or cancel.ALL"
    return Outcome(outcome=REFUSED, message=message)


def _is_taken(error: BrokerError) -> bool:
    text = error.message.lower()
    return "client_order_id" in text and "unique" in text


def _refuse(error: BrokerError, attempts: int) -> Outcome:
    return Outcome(
        outcome=REFUSED, code=error.code, http_status=error.http_status, message=error.message, attempts=attempts
    )


def _refuse_unknown(token: str, attempts: int) -> Outcome:
    message = f"Alpaca knows no order with the id or client order id {token}"
    return Outcome(outcome=REFUSED, http_status=HTTPStatus.NOT_FOUND, message=message, attempts=attempts)


def _judge(body: Mapping[str, Any], order: Mapping[str, Any], outcome: str, attempts: int) -> Outcome:
    if is_same_order(body, order):
        return Outcome(outcome=outcome, order_id=_id_of(order), attempts=attempts)
    return Outcome(
        outcome=REFUSED,
        order_id=_id_of(order),
        http_status=HTTPStatus.UNPROCESSABLE_ENTITY,
        message="the client order id belongs to a different order",
        attempts=attempts,
    )


def _judge_all(answer: Any, attempts: int) -> Outcome:
    parts = [part for part in answer if isinstance(part, Mapping)] if isinstance(answer, list) else []
    failed = [str(part.get("id")) for part in parts if part.get("status") not in (200, 204, None)]
    message = f"{len(parts) - len(failed)} orders"
    if failed:
        message += f"; not canceled: {', '.join(failed[:20])}"
    return Outcome(outcome=ACCEPTED, message=message, attempts=attempts)


def _id_of(order: Any) -> str:
    return str(order.get("id") or "") if isinstance(order, Mapping) else ""
