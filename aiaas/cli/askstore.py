"""`aiaas validate --connect` and `aiaas doctor`: ask the shared store of a config from this machine.

One connection, as a gateway opens it (TLS, user, database; through a sentinel or a cluster's node to a server that has
keys), and a few questions.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiaas.config import codes
from aiaas.config.problem import Problem
from aiaas.config.tree import problem_at
from aiaas.limits.connection import StoreAwayError, StoreConnection, connect, named
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.topology import find_place
from aiaas.plan.read import Reading
from aiaas.proxy.limit_store import store_tls

# Seconds that the store gets for one command here; the gateway gives it store_timeout.
STORE_ANSWERS_WITHIN: Final = 5.0
_ANY_KEY: Final = "aiaas"


def ask_store(reading: Reading) -> tuple[tuple[Problem, ...], list[str]]:
    """The problem of a store that does not answer, or a line about one that does; nothing for counts in memory."""
    plan = reading.plan
    assert plan is not None
    if plan.limits.store_url is None:
        return (), []
    path = ("rate_limit", "store")
    try:
        seen, _ = asyncio.run(question_store(plan.limits.store_url))
    except (StoreAwayError, RedisReplyError) as error:
        return (problem_at(codes.STORE_AWAY, "error", path, str(error), reading.loaded.place(path)),), []
    return (), [f"rate_limit.store: {seen}"]


async def question_store(url: RedisUrl) -> tuple[str, float]:
    """The server, its version and how soon it answers; and by how many seconds its clock is ahead.

    Raises StoreAwayError, RedisReplyError if it refuses a command, EnvironmentFault if a file of the address is wrong.
    """
    tls = store_tls(url)
    place = await find_place(url, tls, _ANY_KEY)
    connection = await connect(url, place, tls, STORE_ANSWERS_WITHIN)
    try:
        began = time.perf_counter()
        await connection.call("PING")
        took = time.perf_counter() - began
        ahead = _seconds(await connection.call("TIME")) - time.time()
        version = _version(await connection.call("INFO", "server"))
        await _try_script(connection)
    finally:
        connection.lose("asked")
    return f"{named(url, place)}: {version}, PING in {took * 1000:.1f} ms", ahead


async def _try_script(connection: StoreConnection) -> None:
    """Limits are decided by a script. Raises StoreAwayError where this user may not run one."""
    try:
        await connection.call("EVAL", "return 1", 0)
    except RedisReplyError as error:
        raise StoreAwayError(f"its user may not run scripts ({error}); allow +eval +evalsha") from error


def _seconds(reply: Reply) -> float:
    match reply:
        case [bytes() as seconds, bytes() as micros]:
            return int(seconds) + int(micros) / 1e6
    raise StoreAwayError("it does not answer TIME as a Redis does")


def _version(reply: Reply) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "valkey_version" in fields:
        return f"Valkey {fields['valkey_version']}"
    return f"Redis {fields.get('redis_version', 'of unknown version')}"
