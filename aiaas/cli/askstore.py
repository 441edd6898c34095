"""`aiaas validate --connect`: ask the shared store of a config from this machine.

One connection, as a gateway opens it (TLS, user, database; through a sentinel or a cluster's node to a server that has
keys), and one question.
"""

from __future__ import annotations

import asyncio
import re

from aiaas.config import codes
from aiaas.config.problem import Problem
from aiaas.config.tree import problem_at
from aiaas.limits.connection import StoreAwayError, connect, named, tls_context
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError
from aiaas.limits.topology import find_place
from aiaas.plan.read import Reading

_PATIENCE = 5.0  # seconds; a gateway waits less, but this is a person's question
_ANY_KEY = "aiaas"
_VERSION = re.compile(rb"^(redis|valkey)_version:(\S+)", re.MULTILINE)


def ask_store(reading: Reading) -> tuple[tuple[Problem, ...], list[str]]:
    """The problem of a store that does not answer, or a line about one that does; nothing for counts in memory."""
    plan = reading.plan
    assert plan is not None
    if plan.limits.store_url is None:
        return (), []
    path = ("rate_limit", "store")
    try:
        return (), [f"rate_limit.store: {asyncio.run(_ask(plan.limits.store_url))}"]
    except (StoreAwayError, RedisReplyError) as error:
        return (problem_at(codes.STORE_AWAY, "error", path, str(error), reading.loaded.place(path)),), []


async def _ask(url: RedisUrl) -> str:
    """Return the name and version of the server. Raises StoreAwayError, or RedisReplyError if it refuses INFO."""
    tls = tls_context(url)
    place = await find_place(url, tls, _ANY_KEY)
    connection = await connect(url, place, tls, _PATIENCE)
    try:
        answer = await connection.call("INFO", "server")
    finally:
        await connection.close()
    versions = dict(_VERSION.findall(answer)) if isinstance(answer, bytes) else {}
    name = b"valkey" if b"valkey" in versions else b"redis"
    version = versions.get(name, b"of an unknown version").decode("ascii", "replace")
    return f"{named(url, place)} answers: {name.decode().capitalize()} {version}"
