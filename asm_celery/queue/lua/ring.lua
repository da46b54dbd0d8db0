-- Ring doorbells again that nobody answered, and promote.  A lease is given back instead when its queue has
-- no living worker any more, or when its workers are busy, the limiter is full, and a worker of another queue
-- is free: what does not run keeps nothing that others could use.
-- Guarantee: each unanswered doorbell is rung at ring_ms, then twice that, up to every 60 s; at most 64 a call.
-- KEYS[1] string  the namespace root
-- Returns {ms until something is due, how many of the leases are repeated doorbells, lease ...}
-- Never: changes a claim number: a repeated doorbell rings for the same claim.
-- include: promote
local function waits_elsewhere(queue, with_new)
  for _, other in ipairs(redis.call('SMEMBERS', QUEUES)) do
    local line = line_key(other)
    local kinds = with_new and { line .. ':busy', line .. ':new' } or { line .. ':busy' }
    if other ~= queue and redis.call('EXISTS', unpack(kinds)) > 0 then
      local slots = capacity(other)
      if redis.call('SCARD', load_key(other)) < slots then return true end
    end
  end
  return false
end
local function is_in_the_way(queue, session)
  local slots, spare = capacity(queue)
  if slots + spare == 0 then return true end
  local is_full = active_sessions() >= limit_of('sessions')
  if not is_full and active_runs() < limit_of('runs') then return false end
  if redis.call('SCARD', load_key(queue)) <= slots then return false end
  return waits_elsewhere(queue, not is_full or redis.call('SCARD', held_key(session)) == 1)
end
local again, ring_ms = {}, tonumber(redis.call('HGET', SETTINGS, 'ring_ms') or '') or 5000
for _, run in ipairs(redis.call('ZRANGEBYSCORE', DISPATCHED, '-inf', now, 'LIMIT', 0, 64)) do
  local entry = redis.call('HMGET', run_key(run), 'session', 'agent', 'claim', 'queue', 'rings')
  if not entry[1] then
    redis.call('ZREM', DISPATCHED, run)
  elseif is_in_the_way(entry[4], entry[1]) then
    drop_lease(run)
    place(entry[1], true)
  else
    local rings = math.min(tonumber(entry[5]) + 1, 10)
    redis.call('HSET', run_key(run), 'rings', rings)
    redis.call('ZADD', DISPATCHED, now + math.min(60000, ring_ms * 2 ^ rings), run)
    again[#again + 1] = ring_for({ run, entry[1], entry[2], entry[3], entry[4] })
  end
end
local answer = promote()
for _, lease in ipairs(answer) do again[#again + 1] = lease end
local repeated = #again - #answer
local due = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
table.insert(again, 1, tostring(repeated))
local due_ms = due[2] and math.max(0, math.min(60000, tonumber(due[2]) - now)) or 60000
table.insert(again, 1, string.format('%.0f', due_ms))
return again
