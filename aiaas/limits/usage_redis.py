"""Usage in the shared store, Redis or Valkey, counted together by all gateways.

    aiaas:{usage}:2026-03-01   hash of a day: `r:KEY_ID:MODEL` requests, `i:` and `o:` tokens, `p:` and `q:` estimated
                               ones, `n:` the key's name, `u:` its last use. It lives for RETENTION_DAYS
    aiaas:{usage}:2026-03-01:users   the same of the users of keys: `r:KEY_ID:USER`; `c:KEY_ID:`, how many they are
    aiaas:{usage}:days         sorted set: the days with usage
    aiaas:{usage}:last         hash: key id -> last use, of all days
    aiaas:{usage}:done:BATCH   this part of a batch has been added; there only until that is known here

One hash tag for all, so that a cluster holds them in one place; where that is, is looked up with each connection. Sums
go in parts of PART, each a script of a millisecond, since the admissions of all gateways wait behind it, and a day is
read in parts as well. The connection is one of its own, with more patience.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from aiaas.limits.connection import StoreAwayError, StoreConnection, connect
from aiaas.limits.redis_url import RedisUrl
from aiaas.limits.resp import RedisReplyError, Reply
from aiaas.limits.topology import find_place
from aiaas.limits.usage import (
    MOST_USERS_A_DAY,
    OTHER_USERS,
    KeptUsage,
    UsageKey,
    UsageStoreError,
    UsageSums,
    day_text,
)
from aiaas.units import DAY

RETENTION_DAYS: Final = 400  # a year, and a month to look back at it
PART: Final = 100  # sums
FIELDS_A_READ: Final = 1000  # fields that the server looks at for one part of a hash
USAGE_PATIENCE: Final = 5.0  # seconds; no request waits for this
UNCERTAIN: Final = DAY  # seconds that a part whose answer may be lost is remembered

_TAG: Final = "usage"
_PREFIX: Final = f"aiaas:{{{_TAG}}}:"
_DAYS: Final = _PREFIX + "days"
_LAST: Final = _PREFIX + "last"
# KEYS: done, day, days, last. ARGV: seconds for done, the day's number, seconds and days of retention, the most rows of
# a key (0 for any number) and the row of all others; then the rows.
_ADD: Final = """
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then return 0 end
local function later(key, field, moment)
  if tonumber(moment) > tonumber(redis.call('HGET', key, field) or 0) then redis.call('HSET', key, field, moment) end
end
local most = tonumber(ARGV[5])
for at = 7, #ARGV, 9 do
  local row = ':' .. ARGV[at] .. ':' .. ARGV[at + 1]
  if most > 0 and redis.call('HEXISTS', KEYS[2], 'n' .. row) == 0
      and redis.call('HINCRBY', KEYS[2], 'c:' .. ARGV[at] .. ':', 1) > most then
    row = ':' .. ARGV[at] .. ':' .. ARGV[6]
  end
  redis.call('HSET', KEYS[2], 'n' .. row, ARGV[at + 2])
  for i, letter in ipairs({'r', 'i', 'o', 'p', 'q'}) do
    redis.call('HINCRBY', KEYS[2], letter .. row, ARGV[at + 2 + i])
  end
  later(KEYS[2], 'u' .. row, ARGV[at + 8])
  later(KEYS[4], ARGV[at], ARGV[at + 8])
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[2] - ARGV[4] - 1)
return 1
"""


class RedisUsage:
    """`aiaas.limits.usage.UsageStore` in a Redis or Valkey. It connects when it is asked, and again when need be."""

    def __init__(self, url: RedisUrl, tls: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._tls = tls
        self._connection: StoreConnection | None = None

    def __repr__(self) -> str:
        return f"RedisUsage({self._url.url})"

    async def add(self, batch: str, usage: KeptUsage) -> None:
        """As in `UsageStore.add`. Of a batch that failed, some parts may be in; the next time they are left out."""
        with self._translated():
            connection = await self._connected()
            done = []
            for number, (day, by_user, part) in enumerate(_parts(usage)):
                done.append(f"{_PREFIX}done:{batch}:{number}")
                keys = (done[-1], _day_key(day, by_user), _DAYS, _LAST)
                retention = (RETENTION_DAYS * DAY, RETENTION_DAYS)
                bound = (MOST_USERS_A_DAY if by_user else 0, OTHER_USERS)
                await connection.call("EVAL", _ADD, len(keys), *keys, UNCERTAIN, day, *retention, *bound, *part)
        # All parts are added. If this does not arrive, the markers expire.
        with suppress(StoreAwayError, RedisReplyError):
            await connection.call("DEL", *done)

    async def read(self, first_day: int, *, by_user: bool = False) -> KeptUsage:
        """As in `UsageStore.read`."""
        found: dict[UsageKey, UsageSums] = {}
        with self._translated():
            connection = await self._connected()
            for day in _texts(await connection.call("ZRANGEBYSCORE", _DAYS, first_day, "+inf")):
                fields = await _hash(connection, _day_key(int(day), by_user))
                for name, value in fields.items():
                    letter, key_id, of = name.split(":", 2)
                    if letter == "n":
                        row = f":{key_id}:{of}"
                        counts = (int(fields.get(each + row, 0)) for each in "riopqu")
                        at = UsageKey(int(day), key_id, *(("", of) if by_user else (of,)))
                        found[at] = UsageSums(value, *counts)
        return found

    async def last_used(self) -> Mapping[str, int]:
        """As in `UsageStore.last_used`."""
        with self._translated():
            connection = await self._connected()
            return {key_id: int(at) for key_id, at in (await _hash(connection, _LAST)).items()}

    async def close(self) -> None:
        """As in `UsageStore.close`."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _connected(self) -> StoreConnection:
        if self._connection is None or self._connection.lost.done():
            place = await find_place(self._url, self._tls, _TAG)
            self._connection = await connect(self._url, place, self._tls, USAGE_PATIENCE)
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (StoreAwayError, RedisReplyError) as error:
            # After MOVED, READONLY and the like another server has the usage; the next connection looks it up.
            if self._connection is not None:
                self._connection.lose("it failed")
            raise UsageStoreError(f"{self._url.url}: {error}") from error


def _day_key(day: int, by_user: bool) -> str:
    return _PREFIX + day_text(day) + (":users" if by_user else "")


def _parts(usage: KeptUsage) -> Iterator[tuple[int, bool, list[str | int]]]:
    """(day, whether by user, rows of the script) for PART sums at most, in the order of `usage`: the same each time."""
    for day, by_user in dict.fromkeys((at.day, at.user != "") for at in usage):
        rows = [(at, sums) for at, sums in usage.items() if at.day == day and (at.user != "") is by_user]
        for start in range(0, len(rows), PART):
            part: list[str | int] = []
            for at, sums in rows[start : start + PART]:
                part += (
                    at.key_id,
                    at.user or at.model,
                    sums.name,
                    sums.requests,
                    sums.input_tokens,
                    sums.output_tokens,
                )
                part += (sums.estimated_input_tokens, sums.estimated_output_tokens, sums.last_used)
            yield day, by_user, part


def _texts(reply: Reply) -> list[str]:
    assert isinstance(reply, list)
    return [item.decode() for item in reply if isinstance(item, bytes)]


async def _hash(connection: StoreConnection, key: str) -> dict[str, str]:
    """Read a whole hash in parts. Fields added meanwhile may be missing."""
    found: dict[str, str] = {}
    cursor = b"0"
    while True:
        match await connection.call("HSCAN", key, cursor, "COUNT", FIELDS_A_READ):
            case [bytes() as cursor, fields]:
                texts = iter(_texts(fields))
                found.update(zip(texts, texts, strict=True))
        if cursor == b"0":
            return found
