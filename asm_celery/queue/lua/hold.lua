-- Hold the whole installation, or release it; the higher version is kept.  While it is held nothing is
-- promoted, and leases that nobody has begun are given back, so that nothing new starts; what runs goes on.
-- Guarantee: idempotent; calls may arrive in any order; at most 500 leases are given back a call.
-- KEYS[1] string  the namespace root
-- ARGV[1] 'held' | 'open'  ARGV[2] version
-- Returns {word, lease ...}; word: how it is now: 'open', 'held', or 'more': held, and to be called again
-- Never: takes a begun lease.
-- include: promote
local known = redis.call('HGET', SETTINGS, 'hold_version')
if tonumber(ARGV[2]) >= tonumber(known or '0') then
  redis.call('HSET', SETTINGS, 'hold', ARGV[1], 'hold_version', ARGV[2])
end
if not is_held() then return reply('open') end
local dispatched = redis.call('ZRANGE', DISPATCHED, 0, 499)
-- in the order of their submission: sessions that join a line now take their turns in it
table.sort(dispatched)
for _, run in ipairs(dispatched) do
  local session = redis.call('HGET', run_key(run), 'session')
  redis.call('ZREM', DISPATCHED, run)
  drop_lease(run)
  if session then place(session, false) end
end
return { #dispatched == 500 and 'more' or 'held' }
