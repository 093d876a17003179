"""The simulated exchange that agents of the local target trade on: one for all of them, an account for each.

It is a kept process like they are, so that it and the accounts outlive the service. Its ports are chosen once.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.errors import PreconditionError
from deploy.local_files import LocalFolder, TargetSettings
from deploy.local_spec import KeptProcess, ProcessSpec

PROJECT = "dry-work-local"
# What it has beside the symbols of the agent that it is opened for.
SYMBOLS = (
    "SPY", "QQQ", "AAPL", "MSFT", "NVDA", "TSLA", "AMZN", "GOOGL", "META", "AMD", "IBM", "BAC", "JPM", "AIG",
    "KO", "XOM", "BTC/USD", "ETH/USD",
)  # fmt: skip
_MODULE = "dry_work.cli.local_exchange"
_PORTS = (20_000, 32_768)


@dataclass(frozen=True, kw_only=True)
class ExchangeAddress:
    """Where the exchange and its Pub/Sub are."""

    url: str
    pubsub: str  # host:port

    def environment_of(self, normalised: str) -> dict[str, str]:
        """Return what an agent finds it by. Each key id has an account of its own; no secret is a secret there."""
        return {
            "ALPACA_URL": self.url,
            "ALPACA_DATA_URL": self.url,
            "ALPACA_API_KEY": f"LOCAL-{normalised}",
            "ALPACA_SECRET_KEY": "local",
            "PUBSUB_EMULATOR_HOST": self.pubsub,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
        }


class LocalExchange:
    """The exchange of a folder."""

    def __init__(self, folder: LocalFolder) -> None:
        self._folder = folder
        self.kept = KeptProcess(folder.exchange)

    def open(self, symbols: tuple[str, ...], target: TargetSettings) -> ExchangeAddress:
        """Let it run, and return where it is. With recordings it has what is in them.

        Raises:
            PreconditionError: it runs already, without some of the symbols.
        """

        def wanted(spec: ProcessSpec | None) -> ProcessSpec | None:
            if spec is None or not spec.note:
                return self._build(symbols, target)
            known = spec.note["symbols"]
            missing = [] if target.data else [symbol for symbol in symbols if symbol not in known]
            if missing:
                raise PreconditionError(
                    f"the local exchange was opened without {', '.join(missing)}; it has {', '.join(known)}."
                    " `dry-work stop --service --delete-state` ends it with all accounts; the next deployment opens"
                    " one with the symbols that it needs"
                )
            return None if spec.running else self._build(tuple(known), target, before=spec)

        spec = self.kept.change(wanted)
        assert spec is not None
        return _address(spec.note)

    def address(self) -> ExchangeAddress | None:
        """Return where it is; None when it was never opened."""
        spec = self.kept.read_spec()
        return None if spec is None or not spec.note else _address(spec.note)

    def _build(
        self, symbols: tuple[str, ...], target: TargetSettings, *, before: ProcessSpec | None = None
    ) -> ProcessSpec:
        listed = tuple(dict.fromkeys((*symbols, *(() if target.data else SYMBOLS))))
        ports = before.note["ports"] if before else _free_ports(2)
        ready = self._folder.exchange / "ready"
        words = ["--port", str(ports[0]), "--pubsub-port", str(ports[1]), "--ready-file", str(ready)]
        words += ["--state-dir", str(self._folder.exchange / "state"), "--speed", target.speed, "--cash", target.cash]
        words += [word for path in target.data for word in ("--data", path)]
        words += [] if target.data else ["--symbols", ",".join(listed)]
        return ProcessSpec(
            argv=(sys.executable, "-P", "-m", _MODULE, *words),
            cwd=str(self._folder.exchange),
            environment={"PYTHONUNBUFFERED": "1"},
            ready_file=str(ready),
            grace_s=15.0,
            note={"symbols": list(listed), "ports": list(ports)},
        )


def _address(note: Mapping[str, object]) -> ExchangeAddress:
    ports = note["ports"]
    assert isinstance(ports, list | tuple)
    return ExchangeAddress(url=f"http://127.0.0.1:{ports[0]}", pubsub=f"127.0.0.1:{ports[1]}")


def _free_ports(count: int) -> tuple[int, ...]:
    """Return ports that are free, below those that systems hand out: nobody is given one while the exchange is away."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(*_PORTS), _PORTS[1] - _PORTS[0]):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return tuple(found)
    raise PreconditionError(f"the local exchange needs {count} free ports between {_PORTS[0]} and {_PORTS[1] - 1}")
