"""Scripts that Redis runs as one step. Each touches the keys of one session (journal, meta, snapshot) or one key.

No script runs per event: appends are plain commands, fenced by the stream's growing ids. A script checks that the
caller still owns the session before it changes or removes anything.
"""

from typing import Final

CREATE: Final = """
-- KEYS: journal, meta, snapshot. ARGV: node, version, principal, created, expiry ms, border, blob, then the fields and
-- values of the first records, which the blob covers. Returns 1, or 0 where the session exists.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('XADD', KEYS[1], '1-0', 'r', ARGV[6])
local at = '1-0'
if #ARGV > 7 then at = redis.call('XADD', KEYS[1], '1-1', unpack(ARGV, 8)) end
redis.call('HSET', KEYS[2], 'v', ARGV[2], 'fence', 1, 'node', ARGV[1], 'principal', ARGV[3], 'created', ARGV[4],
  'at', at)
redis.call('SET', KEYS[3], ARGV[7])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
return 1
"""

CLAIM: Final = """
-- KEYS: journal, meta, snapshot. ARGV: node, expected owner, own highest fence, expiry ms, border.
-- Returns {1, fence, bytes of journal and snapshot}; {0, owner} where somebody else owns it by now; {-1} where there is no
-- such session. The bytes are an estimate, a rough one where the user may not run MEMORY.
local owner = redis.call('HGET', KEYS[2], 'node')
if not owner then return {-1} end
local fence = tonumber(redis.call('HGET', KEYS[2], 'fence'))
if owner ~= ARGV[2] and tonumber(ARGV[3]) <= fence then return {0, owner} end
fence = math.max(fence, tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[2], 'fence', fence, 'node', ARGV[1])
redis.call('XADD', KEYS[1], fence .. '-0', 'r', ARGV[5])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[4]) end
local used = redis.pcall('MEMORY', 'USAGE', KEYS[1])
if type(used) ~= 'number' then used = redis.call('XLEN', KEYS[1]) * 1024 end
return {1, fence, used + redis.call('STRLEN', KEYS[3])}
"""

REPAIR: Final = """
-- KEYS: journal, meta, snapshot. ARGV: node, own fence, version, principal, created, expiry ms, border, blob, entries,
-- lowest fence of another node to which it yields.
-- The owner writes its state again, from which `entries` appends of log events follow. Returns {1, fence}; {0, owner}.
-- A node never uses a fence twice, so its entries of a past that Redis forgot and found again are not taken for new ones.
local owner = redis.call('HGET', KEYS[2], 'node')
local fence = tonumber(redis.call('HGET', KEYS[2], 'fence') or 0)
if owner and owner ~= ARGV[1] and fence >= tonumber(ARGV[10]) then return {0, owner} end
if not owner then redis.call('DEL', KEYS[1]) end
fence = math.max(fence, tonumber(ARGV[2])) + 1
redis.call('HSET', KEYS[2], 'v', ARGV[3], 'fence', fence, 'node', ARGV[1], 'principal', ARGV[4], 'created', ARGV[5],
  'at', fence .. '-' .. ARGV[9])
redis.call('SET', KEYS[3], ARGV[8])
redis.call('XADD', KEYS[1], fence .. '-0', 'r', ARGV[7])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[6]) end
return {1, fence}
"""

SNAPSHOT: Final = """
-- KEYS: journal, meta, snapshot. ARGV: node, fence, entry id, expiry ms, blob, version. Returns 1, or 0 where it is not
-- the owner's.
if redis.call('HGET', KEYS[2], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[2], 'fence') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'v', ARGV[6], 'at', ARGV[3])
redis.call('SET', KEYS[3], ARGV[5])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[4]) end
return 1
"""

EXPIRE: Final = """
-- KEYS: journal, meta, snapshot. ARGV: node, expiry ms. Returns 1, or 0 where another node owns the session.
if redis.call('HGET', KEYS[2], 'node') ~= ARGV[1] then return 0 end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
return 1
"""

REMOVE: Final = """
-- KEYS: journal, meta, snapshot. ARGV: node. Returns 1, or 0 where another node owns the session.
if redis.call('HGET', KEYS[2], 'node') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 1
"""

RESERVE: Final = """
-- KEYS: the principal's sessions that are not closed. ARGV: session, now, most. Returns 1, or 0 where all places are taken.
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return 1
"""

TAKE: Final = """
-- KEYS: a token bucket. ARGV: rate a second, burst, tokens needed, more of them if there are any. Returns the tokens taken
-- and the seconds to wait, one of them 0, as strings: Lua's numbers would be cut to whole ones.
-- The value is the level and the milliseconds until it expires, so the time since it was written needs no clock but Redis's.
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local need, more, level = tonumber(ARGV[3]), tonumber(ARGV[4]), burst
local value = redis.call('GET', KEYS[1])
if value then
  local was, expiry = string.match(value, '(%S+) (%S+)')
  local gone = tonumber(expiry) - redis.call('PTTL', KEYS[1])
  level = math.min(burst, tonumber(was) + gone / 1000 * rate)
end
local short = math.min(need, burst) - level
if short > 1e-6 then return {'0', string.format('%.6f', short / rate)} end
level = level - need
more = math.max(0, math.min(more, level))
level = level - more
local expiry = math.ceil((burst - level) / rate * 1000) + 60000
redis.call('SET', KEYS[1], string.format('%.6f %d', level, expiry), 'PX', expiry)
return {string.format('%.6f', need + more), '0'}
"""

EXCHANGE: Final = """
-- KEYS: one string. ARGV: the value expected, the new one or '', expiry ms. Returns 1, or 0 where the value is another.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""

FORGET: Final = """
-- KEYS: one string. ARGV: a part of the value expected. Removes the value that has it; returns 1, or 0 where it is another.
local value = redis.call('GET', KEYS[1])
if not value or not string.find(value, ARGV[1], 1, true) then return 0 end
return redis.call('DEL', KEYS[1])
"""

CHECK: Final = """
-- KEYS: journal, meta, snapshot. Returns {owner, fence, last id of the journal}, each false where it is missing.
local last = false
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do if info[i] == 'last-generated-id' then last = info[i + 1] end end
end
local snapshot = redis.call('EXISTS', KEYS[3]) == 1
return {redis.call('HGET', KEYS[2], 'node'), redis.call('HGET', KEYS[2], 'fence'), snapshot and last}
"""
