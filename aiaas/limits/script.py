"""The one Lua script of the shared store, and its arguments. No I/O.

The script decides and charges as one step, with the server's clock, by the formulas of `gcra.decide` and `state.State`
on the same doubles in the same order: Lua's numbers are Python's floats, so both come to the same bits. It answers with
the state from before; `standing.py` makes the client's answer from it, by the same functions as the memory store.

Time is seconds since EPOCH as a double: in 2026 exact to 4 ns, in 2060 to a quarter of a microsecond, which
`gcra.EPSILON` forgives. (Since 1970 it would be that much from the start.) Numbers are written with 17 digits, which
read back as they were; Lua's own way of writing them keeps 14.

Two keys for each API key, with its id as hash tag, so that a cluster holds them in one place:

    aiaas:{ID}:limits   hash: TATs `r` (requests), `c` (cheap requests) and `t` (tokens); starts of the UTC day `d` and
                        month `m`, and the tokens counted in them, `dt` and `mt`. Expires when it would decide as a
                        missing one does.
    aiaas:{ID}:slots    sorted set: lease id -> when it ends unless renewed. Expires with its last lease.

The second is named to the script only where slots are limited: while a cluster moves a slot to another node, a command
is sent on (ASK) where none of its keys is there yet, but refused (TRYAGAIN) where one of two is.

And where the users of an API key have limits, two such keys for each user, and one to bound their number:

    aiaas:{ID}:limits:USER, aiaas:{ID}:slots:USER
    aiaas:{ID}:users    sorted set: user -> last admission; of MOST_USERS at most. The least recently used one goes.

Gateways count themselves in the same way: each process holds a lease under the id MEMBERS, renewed with the slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiaas.limits.model import Lease, Limits
from aiaas.limits.state import MOST_USERS, has_quota

EPOCH: Final = 1767225600  # 2026-01-01 in UTC
MEMBERS: Final = "gateways:"  # no API key's id and no client's address

SCRIPT: Final = (
    f"local EPOCH, MOST_USERS = {EPOCH}, {MOST_USERS}\n"
    """
local DAY = 86400
local operation = ARGV[1]
local time = redis.call('TIME')
local fraction = tonumber(time[2]) / 1000000
local wall = tonumber(time[1]) + fraction
local now = (tonumber(time[1]) - EPOCH) + fraction

if operation == 'renew' then
  local lease, slots_key = tonumber(ARGV[2]), KEYS[1]
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

local today = day_of(wall)

-- The state of an API key, or of one of its users.
local function load(key)
  local stored = redis.call('HMGET', key, 'r', 't', 'd', 'dt', 'm', 'mt', 'c')
  return {
    key = key, slots = 0,
    r = tonumber(stored[1]) or -math.huge, t = tonumber(stored[2]) or -math.huge,
    d = tonumber(stored[3]) or -math.huge, dt = tonumber(stored[4]) or 0,
    m = tonumber(stored[5]) or -math.huge, mt = tonumber(stored[6]) or 0,
    c = tonumber(stored[7]) or -math.huge,
  }
end

local function turn(s)
  local this_month = month_of(wall)
  if s.d < today then s.d, s.dt = today, 0 end
  if s.m < this_month then s.m, s.mt = this_month, 0 end
end

-- Answers with the milliseconds for which it is kept.
local function save(s)
  local left = math.max(s.r, s.t, s.c) - now
  if s.dt > 0 then left = math.max(left, s.d + DAY - wall) end
  if s.mt > 0 then left = math.max(left, month_of(s.m + 32 * DAY) - wall) end
  if left <= 0 then
    redis.call('DEL', s.key)
    return 0
  end
  local fields = {}
  for _, name in ipairs({'r', 't', 'd', 'dt', 'm', 'mt', 'c'}) do
    if s[name] > -math.huge then
      fields[#fields + 1] = name
      fields[#fields + 1] = string.format('%.17g', s[name])
    end
  end
  redis.call('HSET', s.key, unpack(fields))
  local kept = math.ceil(left * 1000) + 1000
  redis.call('PEXPIRE', s.key, string.format('%.0f', kept))
  return kept
end

local states = {}
local function answer(allowed)
  local parts = {string.format('%d %.17g %.17g', allowed, now, wall)}
  for _, s in ipairs(states) do
    parts[#parts + 1] = string.format('%d %.17g %.17g %.17g %.17g %.17g %.17g %.17g',
      s.slots, s.r, s.t, s.d, s.dt, s.m, s.mt, s.c)
  end
  return table.concat(parts, ' ')
end

if operation == 'look' then
  for i = 1, #KEYS do states[i] = load(KEYS[i]) end
  return answer(1)
end

local next_key = 0
local function named_key()
  next_key = next_key + 1
  return KEYS[next_key]
end

if operation == 'settle' then
  local difference, ran, admitted, cheap = tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5] == '1'
  local function charge(tat, cost, rate)
    return now + math.max(math.max(tat - now, 0) + cost * (60 / rate), 0)
  end
  for at = 6, #ARGV, 5 do
    local id, per_minute, tokens_per_minute = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local by_day, by_month = ARGV[at + 3] == '1', ARGV[at + 4] == '1'
    local state_key = named_key()
    if id ~= '' then redis.call('ZREM', named_key(), id) end
    if not ran or difference ~= 0 then
      local s = load(state_key)
      if not ran and per_minute then
        if cheap then s.c = charge(s.c, -1, per_minute) else s.r = charge(s.r, -1, per_minute) end
      end
      if difference ~= 0 and tokens_per_minute then s.t = charge(s.t, difference, tokens_per_minute) end
      if difference ~= 0 and (by_day or by_month) then
        turn(s)
        if by_day and s.d == day_of(admitted) then s.dt = math.max(s.dt + difference, 0) end
        if by_month and s.m == month_of(admitted) then s.mt = math.max(s.mt + difference, 0) end
      end
      save(s)
    end
  end
  return 1
end

local tokens, id, lease = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local cheap, user = ARGV[5] == '1', ARGV[6]
local allowed, limits = true, {}
local function decide(tat, rate, size, cost)
  local interval = 60 / rate
  local wanted = math.max(tat - now, 0) + cost * interval
  if wanted > size * interval + 0.000001 then allowed = false end
  return now + wanted
end

for at = 7, #ARGV, 7 do
  local s = load(named_key())
  local l = {
    per_minute = tonumber(ARGV[at]), burst = tonumber(ARGV[at + 1]),
    tokens_per_minute = tonumber(ARGV[at + 2]), tokens_burst = tonumber(ARGV[at + 3]),
    day = tonumber(ARGV[at + 4]), month = tonumber(ARGV[at + 5]), concurrent = tonumber(ARGV[at + 6]),
    r = s.r, t = s.t, c = s.c,
  }
  if l.per_minute then
    if cheap then l.c = decide(s.c, l.per_minute, l.burst, 1) else l.r = decide(s.r, l.per_minute, l.burst, 1) end
  end
  if l.tokens_per_minute then l.t = decide(s.t, l.tokens_per_minute, l.tokens_burst, tokens) end
  if l.day and (s.d >= today and s.dt or 0) + tokens > l.day then allowed = false end
  if l.month and (s.m >= month_of(wall) and s.mt or 0) + tokens > l.month then allowed = false end
  if l.concurrent then
    l.slots_key = named_key()
    redis.call('ZREMRANGEBYSCORE', l.slots_key, '-inf', string.format('%.17g', now))
    s.slots = redis.call('ZCARD', l.slots_key)
    if s.slots >= l.concurrent then allowed = false end
  end
  states[#states + 1] = s
  limits[#limits + 1] = l
end
if not allowed then
  return answer(0)
end

local before, kept = answer(1), 0
for i, s in ipairs(states) do
  local l = limits[i]
  s.r, s.t, s.c, kept = l.r, l.t, l.c, 0
  if l.day or l.month then
    turn(s)
    if l.day then s.dt = s.dt + tokens end
    if l.month then s.mt = s.mt + tokens end
  end
  if l.per_minute or l.tokens_per_minute or l.day or l.month then kept = save(s) end
  if l.concurrent then
    local leased = math.ceil(lease * 1000)
    redis.call('ZADD', l.slots_key, string.format('%.17g', now + lease), id)
    redis.call('PEXPIRE', l.slots_key, string.format('%d', leased))
    kept = math.max(kept, leased)
  end
end

-- `kept` is now that of the user.
if user ~= '' and kept > 0 then
  local users = named_key()
  redis.call('ZADD', users, string.format('%.17g', now), user)
  if kept > redis.call('PTTL', users) then redis.call('PEXPIRE', users, string.format('%.0f', kept)) end
  local most = redis.call('ZCARD', users) - MOST_USERS
  if most > 0 then
    local tag = string.sub(users, 1, -6)
    for _, old in ipairs(redis.call('ZRANGE', users, 0, most - 1)) do
      redis.call('DEL', tag .. 'limits:' .. old, tag .. 'slots:' .. old)
    end
    redis.call('ZREMRANGEBYRANK', users, 0, most - 1)
  end
end
return before
"""
)

Argument = str | int | float


def state_key_of(key: str, user: str | None = None) -> str:
    """The one of KEYS with the state of an API key (or an address), or of its user."""
    return f"aiaas:{{{key}}}:limits" if user is None else f"aiaas:{{{key}}}:limits:{user}"


def slots_key_of(key: str, user: str | None = None) -> str:
    """The one of KEYS with the slots, which is the only one for a renewal."""
    return f"aiaas:{{{key}}}:slots" if user is None else f"aiaas:{{{key}}}:slots:{user}"


def admit_keys(key: str, limits: Limits, user: str) -> tuple[str, ...]:
    """KEYS of an admission."""
    if limits.user is None:
        return _keys_of(key, limits.concurrent is not None)
    keys = _keys_of(key, limits.concurrent is not None) + _keys_of_user(key, limits.user, user)
    return (*keys, f"aiaas:{{{key}}}:users")


def look_keys(key: str, limits: Limits, user: str) -> tuple[str, ...]:
    """KEYS of a look."""
    return (state_key_of(key),) if limits.user is None else (state_key_of(key), state_key_of(key, user))


def settle_keys(lease: Lease) -> tuple[str, ...]:
    """KEYS of a settlement."""
    keys, user = _keys_of(lease.key, lease.slot), lease.limits.user
    return keys if user is None else keys + _keys_of_user(lease.key, user, lease.user)


def _keys_of(key: str, slots: bool) -> tuple[str, ...]:
    if slots:
        return f"aiaas:{{{key}}}:limits", f"aiaas:{{{key}}}:slots"
    return (f"aiaas:{{{key}}}:limits",)


def _keys_of_user(key: str, limits: Limits, user: str) -> tuple[str, ...]:
    state = state_key_of(key, user)
    return (state,) if limits.concurrent is None else (state, slots_key_of(key, user))


def admit_arguments(limits: Limits, tokens: int, lease_id: str, lease: float, user: str = "") -> tuple[Argument, ...]:
    """ARGV of an admission that reserves `tokens`; a slot is held under `lease_id` for `lease` seconds."""
    whole = _limit_arguments(limits)
    if limits.user is None:
        return ("admit", tokens, lease_id, lease, int(limits.cheap), "", *whole)
    return ("admit", tokens, lease_id, lease, int(limits.cheap), user, *whole, *_limit_arguments(limits.user))


def _limit_arguments(limits: Limits) -> tuple[Argument, ...]:
    requests, minute = limits.requests, limits.tokens
    return (
        "" if requests is None else requests.per_minute,
        "" if requests is None else requests.burst,
        "" if minute is None else minute.per_minute,
        "" if minute is None else minute.burst,
        "" if limits.tokens_per_day is None else limits.tokens_per_day,
        "" if limits.tokens_per_month is None else limits.tokens_per_month,
        "" if limits.concurrent is None else limits.concurrent,
    )


def settle_arguments(lease: Lease, used_tokens: int, ran: bool) -> tuple[Argument, ...] | None:
    """ARGV of a settlement; None where there is nothing to settle."""
    limits, user = lease.limits, lease.limits.user
    difference = used_tokens - lease.reserved_tokens
    if not _counts_tokens(limits) and (user is None or not _counts_tokens(user)):
        difference = 0
    if ran and not difference and not lease.slot and (user is None or user.concurrent is None):
        return None
    head = ("settle", difference, int(ran), lease.admitted_wall, int(limits.cheap))
    whole = _settled_arguments(limits, lease.id if lease.slot else "")
    if user is None:
        return head + whole
    return head + whole + _settled_arguments(user, "" if user.concurrent is None else lease.id)


def _counts_tokens(limits: Limits) -> bool:
    return limits.tokens is not None or has_quota(limits)


def _settled_arguments(limits: Limits, lease_id: str) -> tuple[Argument, ...]:
    return (
        lease_id,
        "" if limits.requests is None else limits.requests.per_minute,
        "" if limits.tokens is None else limits.tokens.per_minute,
        int(limits.tokens_per_day is not None),
        int(limits.tokens_per_month is not None),
    )


def renew_arguments(lease_ids: Iterable[str], lease: float) -> tuple[Argument, ...]:
    """ARGV that makes leases end `lease` seconds from now; a lost lease (on an empty server) is there again.

    The script answers with how many leases there are.
    """
    return ("renew", lease, *lease_ids)


LOOK_CALL: Final[tuple[Argument, ...]] = ("look",)
