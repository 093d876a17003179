"""Who looks at a run while it goes on, such as a dashboard, as the runner knows it. All on the engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from dry_work.engine.agents import Agent
from dry_work.market.messages import Slice
from dry_work.settings import RunSettings


def overhear_orders(broker: Any, hear: Callable[[Any], None]) -> None:
    """Call `hear` with each notification of an order on its way to the strategy; several may listen."""
    # Notifications have one way only; an analyzer would be seen by the strategy.
    get_notification = broker.get_notification

    def get_overheard() -> Any:
        order = get_notification()
        if order is not None:
            hear(order)
        return order

    broker.get_notification = get_overheard


class RunPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is about to begin."""

    agent: Agent
    agent_id: str
    folder: Path  # the agent's state directory
    settings: RunSettings  # with the credentials in force
    own_time: bool  # the market's time is that of a simulated exchange
    lockstep: bool
    wake: Callable[[], None]  # lets the engine's loop turn; from any thread
    tell: Callable[[str], None]  # takes lines for people


class RunObserver(Protocol):
    """Is told of a run. It returns at once, and raises nothing once it is open."""

    def open(self, place: RunPlace) -> None:
        """Begin; may raise ConfigError."""

    def tell(self, line: str) -> None:
        """Take a line for people, also before `open`."""

    def attach(self, cerebro: Any, broker: Any, feeds: Sequence[Any]) -> None:
        """Take note of a Cerebro that is not running yet, with one feed for each symbol."""

    def note_ready(self, strategies: Iterable[Any]) -> None:
        """Take note of the strategies, after the warm-up and before the first slice."""

    def note_slice(self, piece: Slice, value: float) -> None:
        """Take note of a slice that was delivered, and of the account's value after it."""

    def look(self) -> None:
        """Called at every turn of the loop."""

    def finish(self) -> None:
        """Take note of the end, while all is still there to be read. May be called twice."""
