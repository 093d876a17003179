"""A run without any account: exchange, hub and transport in this process. Main thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from dry_work.feeds.recorded import Recording
from dry_work.settings import RunSettings


class LocalRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a local run plays, and where."""

    settings: RunSettings  # with the addresses and credentials of the stack
    recording: Recording
    notes: list[str]  # on the recording, for people


def start_local(
    stack: contextlib.ExitStack,
    settings: RunSettings,
    *,
    tell: Callable[[str], None],
    on_failure: Callable[[BaseException], None],
) -> LocalRun:
    """Read what is to be played, and start all that a run needs; `stack` ends it.

    Raises:
        ConfigError: a recording cannot be used.
    """
    from dry_work.embedded.links import PROJECT
    from dry_work.embedded.stack import CREDENTIALS, LocalStack
    from dry_work.exchange.synthetic import synthetic_day
    from dry_work.feeds.recorded import read_bars

    if settings.data:
        recording = read_bars(settings.data, settings.symbols)
        what = f"recordings: {sum(map(recording.count, recording.symbols)):,} bars of {len(recording.symbols)} symbols"
    else:
        recording = synthetic_day(settings.symbols)
        what = f"a synthetic day of {len(recording.symbols)} symbols (made-up prices; --data PATH plays recordings)"
    tell(f"data: {what}")
    notes = recording.describe_repairs()
    for note in notes:
        tell(f"data: {note}")
    local = LocalStack(
        recording, speed=settings.speed, cash=settings.cash, feed=settings.feed.name, on_failure=on_failure
    )
    local.start()
    stack.callback(local.stop)
    tell(
        f"stack: exchange {local.exchange.url}, {local.link.describe()}; "
        + ("lock-step" if settings.speed is None else f"{settings.speed:g} data seconds a second")
    )
    local_settings = msgspec.structs.replace(
        settings,
        credentials=CREDENTIALS,
        project=PROJECT,
        feed=local.link.feed,
        pubsub_endpoint=local.link.pubsub_target,
        alpaca_url=local.exchange.url,
        data_url=local.exchange.url,
    )
    return LocalRun(settings=local_settings, recording=recording, notes=notes)
