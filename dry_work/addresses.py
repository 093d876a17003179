"""Which addresses are this machine's own. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback_host(host: str) -> bool:
    """Tell whether only this machine reaches the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_url(url: str) -> bool:
    """Tell whether a URL names this machine, where a proxy is of no use."""
    return is_loopback_host(urlsplit(url).hostname or "")


def is_alpaca_url(url: str) -> bool:
    """Tell whether a URL is on one of Alpaca's own hosts."""
    host = urlsplit(url).hostname or ""
    return host == "alpaca.markets" or host.endswith(".alpaca.markets")
