-- Ring doorbells again that nobody answered, and promote.  A lease whose queue has no living worker any more
-- is given back instead, so that it holds no limiter slot that others could use.
-- Guarantee: each unanswered doorbell is rung at ring_ms, then twice that, up to every 60 s; at most 64 a call.
-- KEYS[1] string  the namespace root
-- Returns {ms until something is due, how many of the leases are repeated doorbells, lease ...}
-- Never: changes a claim number: a repeated doorbell rings for the same claim.
-- include: promote
local again, ring_ms = {}, tonumber(redis.call('HGET', SETTINGS, 'ring_ms') or '') or 5000
for _, run in ipairs(redis.call('ZRANGEBYSCORE', DISPATCHED, '-inf', now, 'LIMIT', 0, 64)) do
  local entry = redis.call('HMGET', run_key(run), 'session', 'agent', 'claim', 'queue', 'rings')
  if not entry[1] then
    redis.call('ZREM', DISPATCHED, run)
  elseif capacity(entry[4]) == 0 then
    drop_lease(run)
    place(entry[1], true)
  else
    local rings = math.min(tonumber(entry[5]) + 1, 10)
    redis.call('HSET', run_key(run), 'rings', rings)
    redis.call('ZADD', DISPATCHED, now + math.min(60000, ring_ms * 2 ^ rings), run)
    again[#again + 1] = { run, entry[1], entry[2], entry[3], entry[4] }
  end
end
local answer = promote()
for _, lease in ipairs(answer) do again[#again + 1] = lease end
local repeated = #again - #answer
local due = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
table.insert(again, 1, tostring(repeated))
table.insert(again, 1, tostring(due[2] and math.max(0, tonumber(due[2]) - now) or 60000))
return again
