-- include: gate
-- include: capacity
-- include: limits
-- include: lease
-- include: place
-- include: bell
-- Lease ready runs while the gate is open, nobody holds the installation, the limiter has room and their
-- queue has capacity.  The session that has been ready longest goes first, and then to the back; but a queue
-- with a free worker comes before one whose workers could only hold the doorbell, and with it a limiter slot.
local BOUND = 32 -- leases a call at most: the caller calls again until fewer are granted
local function dispatch_lease(run, session)
  local entry = redis.call('HMGET', run_key(run), 'claims', 'agent', 'queue')
  local claim = tonumber(entry[1]) + 1
  redis.call('HSET', run_key(run), 'state', 'dispatched', 'claim', claim, 'rings', 0)
  redis.call('ZADD', DISPATCHED, now + (tonumber(redis.call('HGET', SETTINGS, 'ring_ms') or '') or 5000), run)
  hold(run, session, entry[3])
  return ring_for({ run, session, entry[2], tostring(claim), entry[3] })
end
local function longest_ready(with_new)
  local session, queue, rank, turn, found
  for _, name in ipairs(redis.call('SMEMBERS', QUEUES)) do
    local waiting, load, slots, spare = false, redis.call('SCARD', load_key(name)), capacity(name)
    local its = load < slots and 1 or load < slots + spare and 2 or 3
    for _, kind in ipairs({ ':busy', ':new' }) do
      local head = redis.call('ZRANGE', line_key(name .. kind), 0, 0, 'WITHSCORES')
      local since = tonumber(head[2])
      waiting = waiting or head[1]
      if since and its < 3 and (kind == ':busy' or with_new)
        and (not rank or its < rank or its == rank and since < turn) then
        session, queue, rank, turn, found = head[1], name, its, since, name .. kind
      end
    end
    if not waiting then redis.call('SREM', QUEUES, name) end
  end
  return session, queue, found
end
local function promote()
  local granted = {}
  if not gate_open() then return granted end
  for _, session in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, BOUND)) do
    place(session, false)
  end
  local held, max_runs, max_sessions = is_held(), limit_of('runs'), limit_of('sessions')
  for _ = 1, BOUND do
    if active_runs() >= max_runs or held then break end
    local session, queue, line = longest_ready(active_sessions() < max_sessions)
    if not session then break end
    local slots, state = unpack(redis.call('HMGET', session_key(session), 'slots', 'state'))
    local run = first_ready(session, tonumber(slots) or 1, state)
    -- a run before the one that brought it here may have come due since: its queue may be another one
    local grants = run and redis.call('HGET', run_key(run), 'queue') == queue
    if grants then granted[#granted + 1] = dispatch_lease(run, session) end
    place(session, grants)
    if redis.call('HGET', session_key(session), 'line') ~= line then leave_line(session, line) end -- not its own
  end
  return granted
end
local function reply(word)
  return { word, unpack(promote()) }
end
