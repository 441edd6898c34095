"""The address of the shared store."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.limits.redis_url import RedisUrl, StorePlace, parse_redis_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("redis://redis", RedisUrl((StorePlace("redis", 6379),), 0, False), id="host only"),
        pytest.param("redis://redis:7000/3", RedisUrl((StorePlace("redis", 7000),), 3, False), id="port and database"),
        pytest.param("valkey://[::1]:7000/", RedisUrl((StorePlace("::1", 7000),), 0, False), id="IPv6, Valkey"),
        pytest.param("rediss://r/0", RedisUrl((StorePlace("r", 6379),), 0, True), id="TLS"),
        pytest.param("redis://:pw@r", RedisUrl((StorePlace("r", 6379),), 0, False, None, "pw"), id="password"),
        pytest.param(
            "redis://me:pw@r", RedisUrl((StorePlace("r", 6379),), 0, False, "me", "pw"), id="user and password"
        ),
        pytest.param(
            "redis://:a%2Fb%25@r",
            RedisUrl((StorePlace("r", 6379),), 0, False, None, "a/b%"),
            id="percent-encoded password",
        ),
        pytest.param(
            "redis://:a/b#c?@d@r/1", RedisUrl((StorePlace("r", 6379),), 1, False, None, "a/b#c?@d"), id="raw password"
        ),
        pytest.param("redis://:@r", RedisUrl((StorePlace("r", 6379),), 0, False), id="empty password"),
        pytest.param(
            "rediss://r?ssl_ca_certs=ca.pem&ssl_certfile=c.pem&ssl_keyfile=k.pem",
            RedisUrl((StorePlace("r", 6379),), 0, True, None, None, Path("ca.pem"), Path("c.pem"), Path("k.pem")),
            id="files",
        ),
        pytest.param(
            "redis+cluster://:pw@a,b:7000,[::1]:7001",
            RedisUrl(
                (StorePlace("a", 6379), StorePlace("b", 7000), StorePlace("::1", 7001)),
                0,
                False,
                None,
                "pw",
                kind="cluster",
            ),
            id="cluster",
        ),
        pytest.param(
            "valkeys+cluster://a/0?ssl_ca_certs=ca.pem",
            RedisUrl((StorePlace("a", 6379),), 0, True, ca_file=Path("ca.pem"), kind="cluster"),
            id="cluster, TLS",
        ),
        pytest.param(
            "rediss+sentinel://me:pw@s1,s2:5000/my-primary/3?sentinel_username=u&sentinel_password=p%26w",
            RedisUrl(
                (StorePlace("s1", 26379), StorePlace("s2", 5000)),
                3,
                True,
                "me",
                "pw",
                kind="sentinel",
                service="my-primary",
                sentinel_username="u",
                sentinel_password="p&w",
            ),
            id="sentinel",
        ),
        pytest.param(
            "redis+sentinel://s/name",
            RedisUrl((StorePlace("s", 26379),), 0, False, kind="sentinel", service="name"),
            id="sentinel, first database",
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
        "redis://:hunter2@a,b",
        "redis://:hunter2@a/0/1",
        "redis+other://:hunter2@a",
        "redis+cluster://:hunter2@a,",
        "redis+cluster://:hunter2@a/1",
        "redis+cluster://:hunter2@a?sentinel_password=hunter2",
        "redis+sentinel://:hunter2@a",
        "redis+sentinel://:hunter2@a/",
        "redis+sentinel://:hunter2@a/name/x",
        "redis+sentinel://:hunter2@a/name?sentinel_username=u",
        "redis+sentinel://:hunter2@a:0/name",
    ],
)
def test_unusable_url_is_reported_without_the_password(text: str) -> None:
    """Each message says the allowed values."""
    with pytest.raises(ValueError) as raised:
        parse_redis_url(text)
    assert "hunter2" not in str(raised.value)


def test_no_spelling_of_it_shows_the_password() -> None:
    """Neither the URL for Plan and log nor the repr."""
    url = parse_redis_url("rediss://me:hunter2@[::1]:7000/2")
    assert url.url == "rediss://[::1]:7000/2"
    assert "hunter2" not in repr(url)
    url = parse_redis_url("rediss+sentinel://:hunter2@a,[::1]:1/name/2?sentinel_password=hunter2")
    assert url.url == "rediss+sentinel://a:26379,[::1]:1/name/2"
    assert "hunter2" not in repr(url)
    assert parse_redis_url("valkey+cluster://:hunter2@a,b:1").url == "redis+cluster://a:6379,b:1"
