-- include: gate
-- include: capacity
-- include: limits
-- include: lease
-- include: place
-- Lease ready runs while the gate is open, the limiter has room and their queue has capacity.  The session
-- that has been ready longest goes first; one that got a turn goes to the back.  At most BOUND leases a
-- call: the caller calls again until none is granted.
local BOUND = 32
local function dispatch_lease(run, session)
  local entry = redis.call('HMGET', run_key(run), 'claims', 'agent', 'queue')
  local claim = tonumber(entry[1]) + 1
  redis.call('HSET', run_key(run), 'state', 'dispatched', 'claim', claim, 'rings', 0)
  redis.call('ZADD', DISPATCHED, now + (tonumber(redis.call('HGET', SETTINGS, 'ring_ms') or '') or 5000), run)
  hold(run, session, entry[3])
  return { run, session, entry[2], tostring(claim), entry[3] }
end
local function longest_ready(with_new)
  local session, turn
  for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
    local waiting = false
    local room = redis.call('SCARD', load_key(queue)) < capacity(queue)
    for _, kind in ipairs({ ':busy', ':new' }) do
      local head = redis.call('ZRANGE', line_key(queue .. kind), 0, 0, 'WITHSCORES')
      waiting = waiting or head[1]
      if room and head[1] and (kind == ':busy' or with_new) and (not turn or tonumber(head[2]) < turn) then
        session, turn = head[1], tonumber(head[2])
      end
    end
    if not waiting then redis.call('SREM', QUEUES, queue) end
  end
  return session
end
local function promote()
  local granted = {}
  if not gate_open() then return granted end
  for _, session in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, BOUND)) do
    place(session, false)
  end
  local max_runs, max_sessions = limit_of('runs'), limit_of('sessions')
  while #granted < BOUND and active_runs() < max_runs do
    local session = longest_ready(active_sessions() < max_sessions)
    if not session then break end
    local about = redis.call('HMGET', session_key(session), 'slots', 'state')
    local run = first_ready(session, tonumber(about[1]) or 1, about[2])
    if run then granted[#granted + 1] = dispatch_lease(run, session) end
    -- also when nothing was ready after all: it leaves the line, so the loop moves on
    place(session, run ~= nil)
  end
  return granted
end
local function reply(word)
  local answer = promote()
  table.insert(answer, 1, word)
  return answer
end
