"""The local stack: simulated exchange, hub, and the server between it and the reader, with real protocols."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from dry_work.embedded.links import PROJECT, build_link
from dry_work.exchange.server import ExchangeServer
from dry_work.feeds.recorded import Recording
from dry_work.hub.service import HubService
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, Credentials

# Not a secret: the local exchange admits any key, and listens on the loopback only.
CREDENTIALS = Credentials(key="LOCAL", secret="local")  # noqa: S106
# In lock-step the market waits for a strategy however long its `next` takes; the run ends with the process.
_CONSUMER_TIMEOUT_S = 7 * 86_400.0


class LocalStack:
    """Everything that a run needs beside itself. `start` and `stop` belong to one thread.

    Args:
        recording: the bars that the exchange plays.
        speed: data seconds a second; None is lock-step.
        cash: of the account.
        feed: which way market data goes, one of FEEDS.
        on_failure: called, from the failing thread, when a part dies.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        speed: float | None,
        cash: Decimal,
        feed: str = "pubsub",
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.exchange = ExchangeServer(
            recording,
            rules="backtrader",
            speed=speed,
            consumers=1,
            cash=cash,
            consumer_timeout_s=_CONSUMER_TIMEOUT_S,
            on_failure=on_failure,
        )
        self.link = build_link(feed, on_failure)
        self._is_pubsub = feed == "pubsub"
        self._symbols = recording.symbols
        self._on_failure = on_failure
        self._hub: HubService | None = None

    def start(self) -> None:
        """Start the parts; returns when they listen. What was started is stopped again when one fails."""
        try:
            self.exchange.start()
            self.link.start()
            self._hub = HubService(
                self.exchange.stream_url,
                key=CREDENTIALS.key,
                secret=CREDENTIALS.secret,
                project=PROJECT if self._is_pubsub else None,
                # Over the other ways the reader says itself what it wants.
                symbols=self._symbols if self._is_pubsub else (),
                pubsub_endpoint=self.link.pubsub_target,
                market_topic=MARKET_TOPIC,
                crypto_topic=CRYPTO_TOPIC,
                sinks=self.link.sinks(),
                on_failure=self._on_failure,
            )
            self._hub.start()
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop what runs, from the source of the data to its end. May be called twice."""
        if self._hub is not None:
            self._hub.stop(timeout_s)
        self.exchange.stop(timeout_s)
        self.link.stop(timeout_s)
