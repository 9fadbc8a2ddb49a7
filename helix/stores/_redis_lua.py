"""The scripts of `helix.stores.redis`: each does one thing, whole, inside of the server. Floor 2.

All keys have one hash tag, so a cluster keeps them in one slot. Of a run: `run:ID` is a hash of what is known of it,
`:s` a stream of its structural chunks and `:d` one of its deltas (the ids `N-0` are the chunks' numbers), `:p` a stream
of its unread commands and `:i` the position of each command that ever came. `runs`, `open` and `session:ID` are ordered
by when the runs were created, `sessions` by their newest run; `busy` has the open run of each session.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(number) return string.format('%.0f', number) end
"""

CREATE = (
    _NOW
    + """
-- KEYS: run, s, d, runs, open, busy, session, sessions, number. ARGV: run_id, session_id or '', agent_type, metadata,
-- claim, owner, lease ms, the run it follows or '', then for each chunk '1' for a delta, its line
local claim = redis.call('HGET', KEYS[1], 'claim')
if claim then return {claim == ARGV[5] and 'ok' or 'exists', ''} end
if ARGV[2] ~= '' then
  local other = redis.call('HGET', KEYS[6], ARGV[2])
  if other then return {'busy', other} end
  local newest = redis.call('ZRANGE', KEYS[7], -1, -1)[1] or ''
  if newest ~= ARGV[8] then return {'passed', newest} end
end
local number = redis.call('INCR', KEYS[9])
redis.call('HSET', KEYS[1], 'number', number, 'run_id', ARGV[1], 'session_id', ARGV[2], 'agent_type', ARGV[3],
  'metadata', ARGV[4], 'status', 'running', 'last', (#ARGV - 8) / 2, 'epoch', 1, 'claim', ARGV[5], 'owner', ARGV[6],
  'lease_until', int(now + ARGV[7]), 'created_at', int(now), 'updated_at', int(now), 'deadline', '', 'floor', 0,
  'posted', 0)
for n = 9, #ARGV, 2 do
  redis.call('XADD', ARGV[n] == '1' and KEYS[3] or KEYS[2], int((n - 7) / 2) .. '-0', 'c', ARGV[n + 1])
end
redis.call('ZADD', KEYS[4], number, ARGV[1])
redis.call('ZADD', KEYS[5], number, ARGV[1])
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[6], ARGV[2], ARGV[1])
  redis.call('ZADD', KEYS[7], number, ARGV[1])
  redis.call('ZADD', KEYS[8], number, ARGV[2])
end
return {'ok', ''}
"""
)

CLAIM = (
    _NOW
    + """
-- KEYS: run. ARGV: owner, lease ms, claim
local run = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'status', 'owner', 'lease_until', 'claim')
if not run[1] then return {'missing'} end
if run[6] == ARGV[3] then return {'ok', run[1], run[2]} end
if run[3] == 'completed' or run[3] == 'failed' or run[3] == 'cancelled' then return {'refused'} end
if run[4] ~= '' and tonumber(run[5]) > now then return {'refused'} end
redis.call('HSET', KEYS[1], 'epoch', run[1] + 1, 'owner', ARGV[1], 'lease_until', int(now + ARGV[2]), 'claim', ARGV[3])
return {'ok', int(run[1] + 1), run[2]}
"""
)

APPEND = (
    _NOW
    + """
-- KEYS: run, s, d, p, i, open, busy. ARGV: epoch, after, lease ms, status or '', deadline or '', '1' to give up,
-- channel, news, how many ids, the ids of commands, then for each chunk '1' for a delta, its line
local run = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'last', 'run_id', 'session_id')
if not run[1] then return 'missing' end
if run[1] ~= ARGV[1] or run[2] == '' or run[3] ~= ARGV[2] then return 'refused' end
local first, after, last = 10 + ARGV[9], tonumber(ARGV[2]), tonumber(ARGV[2])
for n = first, #ARGV, 2 do
  last = last + 1
  redis.call('XADD', ARGV[n] == '1' and KEYS[3] or KEYS[2], int(last) .. '-0', 'c', ARGV[n + 1])
end
redis.call('HSET', KEYS[1], 'last', int(last), 'updated_at', int(now), 'lease_until', int(now + ARGV[3]))
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'status', ARGV[4], 'deadline', ARGV[5]) end
if ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'owner', '') end
if ARGV[4] == 'completed' or ARGV[4] == 'failed' or ARGV[4] == 'cancelled' then
  redis.call('ZREM', KEYS[6], run[4])
  if run[5] ~= '' then redis.call('HDEL', KEYS[7], run[5]) end
end
for n = 10, first - 1 do
  local position = redis.call('HGET', KEYS[5], ARGV[n])
  if position then redis.call('XDEL', KEYS[4], position .. '-0') end
end
redis.call('PUBLISH', ARGV[7], ARGV[8])
return 'ok'
"""
)

POST = """
-- KEYS: run, p, i. ARGV: command_id, data, channel, news
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'missing' end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 then return 'there' end
if status == 'completed' or status == 'failed' or status == 'cancelled' then return 'refused' end
local position = redis.call('HINCRBY', KEYS[1], 'posted', 1)
redis.call('XADD', KEYS[2], position .. '-0', 'i', ARGV[1], 'c', ARGV[2])
redis.call('HSET', KEYS[3], ARGV[1], position)
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 'ok'
"""

TRIM = """
-- KEYS: run, d. ARGV: up_to
local run = redis.call('HMGET', KEYS[1], 'last', 'floor')
if not run[1] then return -1 end
local floor = math.min(tonumber(ARGV[1]), tonumber(run[1]))
if floor > tonumber(run[2]) then redis.call('HSET', KEYS[1], 'floor', string.format('%.0f', floor)) end
return redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f', floor + 1) .. '-0')
"""

DELETE = (
    _NOW
    + """
-- KEYS: runs, open, busy, sessions. ARGV: prefix, channel, sender, ids of runs. None is deleted if one has an owner
for n = 4, #ARGV do
  local run = redis.call('HMGET', ARGV[1] .. 'run:' .. ARGV[n], 'status', 'owner', 'lease_until')
  if not run[1] then return {'missing', ARGV[n]} end
  local ended = run[1] == 'completed' or run[1] == 'failed' or run[1] == 'cancelled'
  if not ended and run[2] ~= '' and tonumber(run[3]) > now then return {'refused', ARGV[n]} end
end
for n = 4, #ARGV do
  local key, run_id = ARGV[1] .. 'run:' .. ARGV[n], ARGV[n]
  local session = redis.call('HGET', key, 'session_id')
  redis.call('DEL', key, key .. ':s', key .. ':d', key .. ':p', key .. ':i')
  redis.call('ZREM', KEYS[1], run_id)
  redis.call('ZREM', KEYS[2], run_id)
  if session ~= '' then
    if redis.call('HGET', KEYS[3], session) == run_id then redis.call('HDEL', KEYS[3], session) end
    local of_session = ARGV[1] .. 'session:' .. session
    redis.call('ZREM', of_session, run_id)
    local newest = redis.call('ZRANGE', of_session, -1, -1, 'WITHSCORES')
    if newest[1] then redis.call('ZADD', KEYS[4], newest[2], session) else redis.call('ZREM', KEYS[4], session) end
  end
  redis.call('PUBLISH', ARGV[2], ARGV[3] .. ' ' .. run_id)
end
return {'ok', ''}
"""
)
