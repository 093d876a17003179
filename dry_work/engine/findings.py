"""What a diagnosis looks at and what it says. Pure but for the files that `Subject` reads when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from dry_work.market.symbols import read_symbols
from dry_work.settings import (
    DEFAULT_SYMBOLS,
    POD_STATE_DIR,
    choose_state_dir,
    choose_venue_urls,
    parse_account_id,
    parse_url,
    read_variable,
)


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about one part."""

    part: str
    outcome: Outcome
    text: str
    remedy: str = ""  # what fixes it; empty when there is nothing to fix

    def to_json(self) -> dict[str, str]:
        """Return the finding as `--json` prints it."""
        return {"part": self.part, "outcome": self.outcome.value, "text": self.text, "remedy": self.remedy}


def ok(part: str, text: str) -> Finding:
    return Finding(part=part, outcome=Outcome.OK, text=text)


def warning(part: str, text: str, remedy: str) -> Finding:
    return Finding(part=part, outcome=Outcome.WARNING, text=text, remedy=remedy)


def failed(part: str, text: str, remedy: str) -> Finding:
    return Finding(part=part, outcome=Outcome.FAILED, text=text, remedy=remedy)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at: the folder, environment and options of a run."""

    folder: Path
    environment: Mapping[str, str]
    toml: Mapping[str, Any]
    symbols: str | None = None  # option: the symbols file
    state_dir: str | None = None  # option
    live: bool = False
    feed_given: str | None = None  # option: the way of market data
    timeout_s: float = 5.0  # of each request

    def variable(self, *names: str, default: str = "") -> str:
        return read_variable(self.environment, *names) or default

    @property
    def agent_id(self) -> str:
        return self.variable("AGENT_ID") or str(self.toml.get("agent_id", ""))

    @property
    def feed(self) -> str:
        return self.feed_given or self.variable("DRY_WORK_FEED") or str(self.toml.get("feed") or "pubsub")

    @property
    def account_id(self) -> str:
        return parse_account_id(self.variable("ALPACA_ACCOUNT_ID"))

    @property
    def alpaca_url(self) -> str:
        default, _ = choose_venue_urls(self.account_id, live=self.live)
        return parse_url(self.variable("ALPACA_URL", default=default), name="ALPACA_URL")

    @property
    def data_url(self) -> str:
        default_url, default = choose_venue_urls(self.account_id, live=self.live)
        if self.alpaca_url != default_url:
            default = self.alpaca_url
        return parse_url(self.variable("ALPACA_DATA_URL", default=default), name="ALPACA_DATA_URL")

    def wanted_symbols(self) -> list[str]:
        return read_symbols(self.folder / (self.symbols or str(self.toml.get("symbols", DEFAULT_SYMBOLS))))

    def state_path(self) -> Path:
        """Return the agent's state directory, as a run on paper would choose it."""
        base, given = choose_state_dir(self.state_dir or self.toml.get("state_dir"), agent_id=self.agent_id)
        at = self.folder / base
        return at if given or base == POD_STATE_DIR or not self.agent_id else at / self.agent_id
