"""The one Lua script of the shared store, its arguments and its answers. No I/O.

The script decides and charges as one step, with the server's clock, by the formulas of `gcra.decide` and `state.State`
on the same doubles in the same order: Lua's numbers are Python's floats, so both come to the same bits. It answers with
the state from before; this module makes the client's answer from it, by the same functions as the memory store.

Time is seconds since EPOCH as a double: in 2026 exact to 4 ns, in 2060 to a quarter of a microsecond, which
`gcra.EPSILON` forgives. (Since 1970 it would be that much from the start.) Numbers are written with 17 digits, which
read back as they were; Lua's own way of writing them keeps 14.

Two keys for each API key, with its id as hash tag, so that a cluster holds both in one place:

    aiaas:{ID}:limits   hash: TATs `r` (requests), `c` (cheap requests) and `t` (tokens); starts of the UTC day `d` and
                        month `m`, and the tokens counted in them, `dt` and `mt`. Expires when it would decide as a
                        missing one does.
    aiaas:{ID}:slots    sorted set: lease id -> when it ends unless renewed. Expires with its last lease.

The second is named to the script only where slots are limited: while a cluster moves a slot to another node, a command
is sent on (ASK) where none of its keys is there yet, but refused (TRYAGAIN) where one of two is.

Gateways count themselves in the same way: each process holds a lease under the id MEMBERS, renewed with the slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from aiaas.limits.model import Lease, Limits
from aiaas.limits.state import State, has_quota

EPOCH: Final = 1767225600  # 2026-01-01 in UTC
MEMBERS: Final = "gateways:"  # no API key's id and no client's address

SCRIPT: Final = (
    f"local EPOCH = {EPOCH}\n"
    """
local DAY = 86400
local state_key, slots_key, operation = KEYS[1], KEYS[2], ARGV[1]
local time = redis.call('TIME')
local fraction = tonumber(time[2]) / 1000000
local wall = tonumber(time[1]) + fraction
local now = (tonumber(time[1]) - EPOCH) + fraction

if operation == 'renew' then
  local lease = tonumber(ARGV[2])
  slots_key = KEYS[1]
  redis.call('ZREMRANGEBYSCORE', slots_key, '-inf', string.format('%.17g', now))
  for i = 3, #ARGV do
    redis.call('ZADD', slots_key, string.format('%.17g', now + lease), ARGV[i])
  end
  redis.call('PEXPIRE', slots_key, string.format('%d', math.ceil(lease * 1000)))
  return redis.call('ZCARD', slots_key)
end

local function day_of(at)
  return math.floor(at / DAY) * DAY
end

-- Days to civil date, with years that begin in March ("days_from_civil" of C++'s std::chrono, read backwards).
local function month_of(at)
  local days = math.floor(at / DAY) + 719468
  local in_era = days % 146097
  local year = math.floor(
    (in_era - math.floor(in_era / 1460) + math.floor(in_era / 36524) - math.floor(in_era / 146096)) / 365)
  local in_year = in_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * in_year + 2) / 153)
  local in_month = in_year - math.floor((153 * month + 2) / 5)
  return (days - in_month - 719468) * DAY
end

local stored = redis.call('HMGET', state_key, 'r', 't', 'd', 'dt', 'm', 'mt', 'c')
local r, t = tonumber(stored[1]) or -math.huge, tonumber(stored[2]) or -math.huge
local d, dt = tonumber(stored[3]) or -math.huge, tonumber(stored[4]) or 0
local m, mt = tonumber(stored[5]) or -math.huge, tonumber(stored[6]) or 0
local c = tonumber(stored[7]) or -math.huge
local today = day_of(wall)

local function turn()
  local this_month = month_of(wall)
  if d < today then d, dt = today, 0 end
  if m < this_month then m, mt = this_month, 0 end
end

local function save()
  local left = math.max(r, t, c) - now
  if dt > 0 then left = math.max(left, d + DAY - wall) end
  if mt > 0 then left = math.max(left, month_of(m + 32 * DAY) - wall) end
  if left <= 0 then
    redis.call('DEL', state_key)
    return
  end
  local fields = {}
  for name, value in pairs({r = r, t = t, d = d, dt = dt, m = m, mt = mt, c = c}) do
    if value > -math.huge then
      fields[#fields + 1] = name
      fields[#fields + 1] = string.format('%.17g', value)
    end
  end
  redis.call('HSET', state_key, unpack(fields))
  redis.call('PEXPIRE', state_key, string.format('%.0f', math.ceil(left * 1000) + 1000))
end

local slots = 0
local function answer(allowed)
  return string.format('%d %.17g %.17g %d %.17g %.17g %.17g %.17g %.17g %.17g %.17g',
    allowed, now, wall, slots, r, t, d, dt, m, mt, c)
end

if operation == 'look' then
  return answer(1)
end

if operation == 'settle' then
  local id, per_minute, tokens_per_minute = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
  local by_day, by_month = ARGV[5] == '1', ARGV[6] == '1'
  local difference, ran, admitted, cheap = tonumber(ARGV[7]), ARGV[8] == '1', tonumber(ARGV[9]), ARGV[10] == '1'
  local function charge(tat, cost, rate)
    return now + math.max(math.max(tat - now, 0) + cost * (60 / rate), 0)
  end
  if id ~= '' then redis.call('ZREM', slots_key, id) end
  if ran and difference == 0 then return 1 end
  if not ran and per_minute then
    if cheap then c = charge(c, -1, per_minute) else r = charge(r, -1, per_minute) end
  end
  if difference ~= 0 and tokens_per_minute then t = charge(t, difference, tokens_per_minute) end
  if difference ~= 0 and (by_day or by_month) then
    turn()
    if by_day and d == day_of(admitted) then dt = math.max(dt + difference, 0) end
    if by_month and m == month_of(admitted) then mt = math.max(mt + difference, 0) end
  end
  save()
  return 1
end

local tokens, id, lease = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local per_minute, burst = tonumber(ARGV[5]), tonumber(ARGV[6])
local tokens_per_minute, tokens_burst = tonumber(ARGV[7]), tonumber(ARGV[8])
local day_quota, month_quota, concurrent = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local cheap = ARGV[12] == '1'

local allowed = true
local function decide(tat, rate, size, cost)
  local interval = 60 / rate
  local wanted = math.max(tat - now, 0) + cost * interval
  if wanted > size * interval + 0.000001 then allowed = false end
  return now + wanted
end

local next_r, next_t, next_c = r, t, c
if per_minute then
  if cheap then next_c = decide(c, per_minute, burst, 1) else next_r = decide(r, per_minute, burst, 1) end
end
if tokens_per_minute then next_t = decide(t, tokens_per_minute, tokens_burst, tokens) end
if day_quota and (d >= today and dt or 0) + tokens > day_quota then allowed = false end
if month_quota and (m >= month_of(wall) and mt or 0) + tokens > month_quota then allowed = false end
if concurrent then
  redis.call('ZREMRANGEBYSCORE', slots_key, '-inf', string.format('%.17g', now))
  slots = redis.call('ZCARD', slots_key)
  if slots >= concurrent then allowed = false end
end
if not allowed then
  return answer(0)
end

local before = answer(1)
r, t, c = next_r, next_t, next_c
if day_quota or month_quota then
  turn()
  if day_quota then dt = dt + tokens end
  if month_quota then mt = mt + tokens end
end
if per_minute or tokens_per_minute or day_quota or month_quota then save() end
if concurrent then
  redis.call('ZADD', slots_key, string.format('%.17g', now + lease), id)
  redis.call('PEXPIRE', slots_key, string.format('%d', math.ceil(lease * 1000)))
end
return before
"""
)

Argument = str | int | float


class Standing(msgspec.Struct, frozen=True, gc=False):
    """The script's answer: whether all limits let the request in, and their state before.

    now   seconds since EPOCH, wall  POSIX seconds, both by the server's clock
    """

    allowed: bool
    now: float
    wall: float
    state: State


def keys_of(key: str, *, slots: bool) -> tuple[str, ...]:
    """The script's KEYS for an API key (or an address), with that of its slots where they matter."""
    state = f"aiaas:{{{key}}}:limits"
    return (state, slots_key_of(key)) if slots else (state,)


def slots_key_of(key: str) -> str:
    """The only one of KEYS for a renewal."""
    return f"aiaas:{{{key}}}:slots"


def admit_arguments(limits: Limits, tokens: int, lease_id: str, lease: float) -> tuple[Argument, ...]:
    """ARGV of an admission that reserves `tokens`; a slot is held under `lease_id` for `lease` seconds."""
    requests, minute = limits.requests, limits.tokens
    return (
        "admit",
        tokens,
        lease_id,
        lease,
        "" if requests is None else requests.per_minute,
        "" if requests is None else requests.burst,
        "" if minute is None else minute.per_minute,
        "" if minute is None else minute.burst,
        "" if limits.tokens_per_day is None else limits.tokens_per_day,
        "" if limits.tokens_per_month is None else limits.tokens_per_month,
        "" if limits.concurrent is None else limits.concurrent,
        int(limits.cheap),
    )


def settle_arguments(lease: Lease, used_tokens: int, ran: bool) -> tuple[Argument, ...] | None:
    """ARGV of a settlement; None where there is nothing to settle."""
    limits = lease.limits
    difference = used_tokens - lease.reserved_tokens
    if limits.tokens is None and not has_quota(limits):
        difference = 0
    if ran and not lease.slot and not difference:
        return None
    return (
        "settle",
        lease.id if lease.slot else "",
        "" if limits.requests is None else limits.requests.per_minute,
        "" if limits.tokens is None else limits.tokens.per_minute,
        int(limits.tokens_per_day is not None),
        int(limits.tokens_per_month is not None),
        difference,
        int(ran),
        lease.admitted_wall,
        int(limits.cheap),
    )


def renew_arguments(lease_ids: Iterable[str], lease: float) -> tuple[Argument, ...]:
    """ARGV that makes leases end `lease` seconds from now; a lost lease (on an empty server) is there again.

    The script answers with how many leases there are.
    """
    return ("renew", lease, *lease_ids)


LOOK_CALL: Final[tuple[Argument, ...]] = ("look",)


def standing(reply: bytes) -> Standing:
    """The script's answer to an admission or a look."""
    allowed, now, wall, slots, requests, tokens, day, day_tokens, month, month_tokens, cheap = reply.split()
    state = State()
    state.requests, state.tokens, state.slots = float(requests), float(tokens), int(slots)
    state.day, state.day_tokens = float(day), int(float(day_tokens))
    state.month, state.month_tokens = float(month), int(float(month_tokens))
    state.cheap = float(cheap)
    return Standing(allowed == b"1", float(now), float(wall), state)
