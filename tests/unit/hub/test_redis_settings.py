"""Settings of the Redis interface: every variable has an effect, and every wrong value is named."""

from __future__ import annotations

from typing import Any

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.sinks.redis_settings import RedisSettings, read_redis_settings


def test_without_variables_there_are_the_documented_defaults() -> None:
    settings = read_redis_settings({"REDIS_HOST": "", "REDIS_PORT": " "})
    assert settings == RedisSettings()
    assert (settings.host, settings.port, settings.db) == ("localhost", 6379, 0)
    assert (settings.lease_s, settings.stream_length) == (60.0, 10_000)
    assert not settings.use_tls
    assert not settings.has_legacy


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("REDIS_HOST", "redis.example", "host", "redis.example"),
        ("REDIS_HOST", "::1", "host", "::1"),
        ("REDIS_PORT", "7000", "port", 7000),
        ("REDIS_DB", "3", "db", 3),
        ("REDIS_PASSWORD", " a word ", "password", " a word "),
        ("REDIS_TLS", "True", "use_tls", True),
        ("REDIS_TLS", "F", "use_tls", False),
        ("REDIS_LEASE_SECONDS", "1.5", "lease_s", 1.5),
        ("REDIS_LEASE_SECONDS", "3600", "hold_expiry_s", 36_000),
        ("REDIS_STREAM_LENGTH", "0", "stream_length", 0),
        ("REDIS_LEGACY_CHANNELS", "t", "has_legacy", True),
    ],
)
def test_every_variable_has_an_effect(variable: str, value: str, field: str, expected: Any) -> None:
    assert getattr(read_redis_settings({variable: value}), field) == expected


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("REDIS_HOST", "redis://localhost", "host name or address alone"),
        ("REDIS_PORT", "0", "from 1 to 65535"),
        ("REDIS_PORT", "x", "from 1 to 65535"),
        ("REDIS_DB", "-1", "whole number from 0"),
        ("REDIS_TLS", "maybe", "one of 1, t, true, 0, f, false"),
        ("REDIS_LEASE_SECONDS", "0", "from 1 to 86400"),
        ("REDIS_LEASE_SECONDS", "nan", "from 1 to 86400"),
        ("REDIS_STREAM_LENGTH", "1e3", "whole number from 0"),
        ("REDIS_LEGACY_CHANNELS", "yes please", "one of 1, t, true"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_variable_value_and_what_is_allowed(
    variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_redis_settings({variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert allowed in str(caught.value)


def test_a_user_needs_a_password_and_no_text_shows_it() -> None:
    with pytest.raises(ConfigError, match="REDIS_PASSWORD is not"):
        read_redis_settings({"REDIS_USERNAME": "somebody"})
    settings = read_redis_settings({"REDIS_USERNAME": "somebody", "REDIS_PASSWORD": "s3cret"})
    assert settings.username == "somebody"
    assert "s3cret" not in f"{settings!r} {settings} {settings.masked()}"
    assert settings.masked()["password"] == "***"


def test_an_address_is_written_for_people() -> None:
    assert read_redis_settings({"REDIS_HOST": "::1", "REDIS_DB": "2"}).address == "[::1]:6379/2"
