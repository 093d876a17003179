"""Where the dashboard listens, as it is given on the command line. Pure."""

from __future__ import annotations

import re

import msgspec

from dry_work.dashboard.access import choose_token
from dry_work.errors import ConfigError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8070
DEFAULT_ADDRESS = f"{LOOPBACK}:{DEFAULT_PORT}"


class DashboardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where it listens. Its `repr` never shows the token."""

    host: str = LOOPBACK
    port: int = DEFAULT_PORT  # 0: any free one
    token: str = ""
    may_move: bool = False  # to any free port, when the one that nobody asked for is taken

    def __repr__(self) -> str:
        return f"DashboardSettings({self.host}:{self.port}, token={'set' if self.token else 'none'})"


def parse_dashboard(text: str, *, token: str = "", option: str = "--dashboard") -> DashboardSettings:
    """Return the settings for `HOST:PORT`, `PORT` or `HOST`; empty: the default address.

    Args:
        token: as it is given in the environment; without one a new one is made where one is needed.

    Raises:
        ConfigError: naming the value and what is allowed.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        host, port = LOOPBACK, text
    elif text.startswith("[") or text.count(":") == 1:
        host, _, port = text.rpartition(":")
        if text.endswith("]"):
            host, port = text, str(DEFAULT_PORT)
    else:
        host, port = text, str(DEFAULT_PORT)
    host = host.strip("[]") or LOOPBACK
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535 or not re.fullmatch(r"[0-9A-Za-z.:_-]+", host):
        raise ConfigError(f"{option} {text!r}: expected HOST:PORT, for example {DEFAULT_ADDRESS}")
    try:
        chosen = choose_token(host, token)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return DashboardSettings(host=host, port=int(port), token=chosen, may_move=not text or text == DEFAULT_ADDRESS)


__all__ = ["DEFAULT_ADDRESS", "DEFAULT_PORT", "LOOPBACK", "DashboardSettings", "parse_dashboard"]
