"""Halting, releasing and flattening from the page: what `dry-work halt` and `dry-work flatten` do, by the same way."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dry_work.broker.operator import Operator, Tell
from dry_work.errors import DryWorkError

ACTIONS = ("halt", "release", "flatten")
REASON_LENGTH = 200
FLATTEN_S = 20.0


class ActionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an action."""

    done: bool
    lines: tuple[str, ...]  # for people


def act(build_operator: Callable[[Tell], Operator], action: str, reason: str) -> ActionResult:
    """Do one of `ACTIONS`. It takes seconds: not to be called on a thread that others wait for.

    Args:
        build_operator: returns the operator of the agent; takes what takes lines for people.
        reason: for the journal and the agent's log.
    """
    lines: list[str] = []
    reason = " ".join(reason.split())[:REASON_LENGTH] or "by the dashboard"
    try:
        operator = build_operator(lines.append)
        if action == "halt":
            done = operator.halt(reason)
        elif action == "release":
            done = operator.release(reason)
        else:
            done = operator.flatten(reason, timeout_s=FLATTEN_S)
    except DryWorkError as error:
        lines.append(str(error))
        done = False
    return ActionResult(done=done, lines=tuple(lines))
