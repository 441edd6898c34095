"""The address of the shared store."""

from __future__ import annotations

import pytest

from aiaas.limits.redis_url import Place, RedisUrl, parse_redis_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("redis://redis", RedisUrl((Place("redis", 6379),), 0, False), id="host only"),
        pytest.param("redis://redis:7000/3", RedisUrl((Place("redis", 7000),), 3, False), id="port and database"),
        pytest.param("valkey://[::1]:7000/", RedisUrl((Place("::1", 7000),), 0, False), id="IPv6, Valkey"),
        pytest.param("rediss://r/0", RedisUrl((Place("r", 6379),), 0, True), id="TLS"),
        pytest.param("redis://:pw@r", RedisUrl((Place("r", 6379),), 0, False, None, "pw"), id="password"),
        pytest.param("redis://me:pw@r", RedisUrl((Place("r", 6379),), 0, False, "me", "pw"), id="user and password"),
        pytest.param(
            "redis://:a%2Fb%25@r", RedisUrl((Place("r", 6379),), 0, False, None, "a/b%"), id="percent-encoded password"
        ),
        pytest.param(
            "redis://:a/b#c?@d@r/1", RedisUrl((Place("r", 6379),), 1, False, None, "a/b#c?@d"), id="raw password"
        ),
        pytest.param("redis://:@r", RedisUrl((Place("r", 6379),), 0, False), id="empty password"),
        pytest.param(
            "rediss://r?ssl_ca_certs=ca.pem&ssl_certfile=c.pem&ssl_keyfile=k.pem",
            RedisUrl((Place("r", 6379),), 0, True, None, None, "ca.pem", "c.pem", "k.pem"),
            id="files",
        ),
    ],
)
def test_addresses_are_taken_apart(text: str, expected: RedisUrl) -> None:
    """Every part that an address may have."""
    assert parse_redis_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://redis",
        "redis:6379",
        "redis://",
        "redis://:hunter2@",
        "redis://:hunter2@a b",
        "redis://:hunter2@r:0",
        "redis://:hunter2@r:70000",
        "redis://:hunter2@r/x",
        "redis://hunter2@r",
        "redis://:hunter2@r?password=hunter2",
        "redis://:hunter2@r?ssl_ca_certs=ca.pem",
        "rediss://:hunter2@r?ssl_certfile=c.pem",
        "rediss://:hunter2@r?ssl_ca_certs=",
    ],
)
def test_what_cannot_be_used_is_said_without_the_password(text: str) -> None:
    """Each with what is allowed."""
    with pytest.raises(ValueError) as raised:
        parse_redis_url(text)
    assert "hunter2" not in str(raised.value)


def test_no_spelling_of_it_shows_the_password() -> None:
    """Neither the URL for Plan and log nor the repr."""
    url = parse_redis_url("rediss://me:hunter2@[::1]:7000/2")
    assert url.url == "rediss://[::1]:7000/2"
    assert "hunter2" not in repr(url)
