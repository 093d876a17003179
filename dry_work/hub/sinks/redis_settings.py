"""Settings of the Redis interface from the environment. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from dry_work.errors import ConfigError
from dry_work.hub.variables import read_count, read_flag, read_number
from dry_work.settings import read_variable

_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the Redis interface runs with. Its `repr` shows no password."""

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str = ""
    password: str = ""
    use_tls: bool = False
    lease_s: float = 60.0  # how long a symbol is held that nobody listens to
    stream_length: int = 10_000  # entries that a stream keeps, about; 0: there are no streams
    has_legacy: bool = False  # publish on the legacy channels too
    capacity: int = 65_536  # events of market data that may wait for Redis
    order_capacity: int = 100_000  # order updates that may
    timeout_s: float = 5.0  # of an answer
    check_interval_s: float = 2.0  # between looks at who listens
    hold_expiry_s: int = 3_600  # how long holds outlast the hub, at least
    first_wait_s: float = 0.1  # before the second try to connect
    longest_wait_s: float = 10.0

    @property
    def address(self) -> str:
        """Where Redis is, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.db}"

    def masked(self) -> dict[str, Any]:
        """Return the settings by name, the password masked."""
        return {**msgspec.structs.asdict(self), "password": "***" if self.password else ""}

    def __repr__(self) -> str:
        return f"RedisSettings({self.address!r}, use_tls={self.use_tls})"


def read_redis_settings(environment: Mapping[str, str]) -> RedisSettings:
    """Return the settings; an empty variable counts as unset.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    base = RedisSettings()
    host = read_variable(environment, "REDIS_HOST") or base.host
    if not _HOST.fullmatch(host):
        raise ConfigError(f"REDIS_HOST={host!r}: expected a host name or address alone, such as localhost")
    username, password = environment.get("REDIS_USERNAME", ""), environment.get("REDIS_PASSWORD", "")
    if username and not password:
        raise ConfigError("REDIS_USERNAME is set, but REDIS_PASSWORD is not: set both, or the password alone")
    lease_s = read_number(environment, "REDIS_LEASE_SECONDS", default=base.lease_s, least=1, most=86_400)
    return RedisSettings(
        host=host,
        port=read_count(environment, "REDIS_PORT", default=base.port, least=1, most=65_535),
        db=read_count(environment, "REDIS_DB", default=base.db, least=0, most=1_000_000),
        username=username,
        password=password,
        use_tls=read_flag(environment, "REDIS_TLS"),
        lease_s=lease_s,
        stream_length=read_count(
            environment, "REDIS_STREAM_LENGTH", default=base.stream_length, least=0, most=1_000_000_000
        ),
        has_legacy=read_flag(environment, "REDIS_LEGACY_CHANNELS"),
        check_interval_s=min(base.check_interval_s, lease_s / 4),
        hold_expiry_s=max(base.hold_expiry_s, round(lease_s * 10)),
    )
