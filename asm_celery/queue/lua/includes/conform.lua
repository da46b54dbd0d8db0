-- include: whole
-- Make Redis say of a session's runs what SQL said of them.  SQL may have moved on since it was read, so
-- what Redis knows under a higher claim number is newer and stays.
--   ARGV[first]     session id
--   ARGV[first + 1] its slots     ARGV[first + 2] its state     ARGV[first + 3] the state's version
--   then for each run 8 values: run id, agent, position, queue, status, claims, executor, waits (ms)
local function conform_run(session, at, records_running)
  local run, agent, position, queue = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local status, claims, executor = ARGV[at + 4], tonumber(ARGV[at + 5]), ARGV[at + 6]
  local key = run_key(run)
  local known = redis.call('HMGET', key, 'state', 'claims', 'claim')
  local state = known[1]
  if state and not select(2, seen_of(run)) then
    purge(run, session)
    state = nil
  end
  if not state then
    if status == 'running' and not records_running then return end
    redis.call('HSET', key, 'session', session, 'agent', agent, 'position', position, 'queue', queue,
      'claims', claims, 'state', 'waiting', 'not_before', 0)
    known = { 'waiting', status == 'running' and claims - 1 or claims, false }
    state = 'waiting'
  end
  -- also of a run that is known: one of these may be what was lost
  redis.call('ZADD', open_key(session), position, run)
  redis.call('SADD', KNOWN, run)
  hold_again(run, session)
  if status == 'running' then
    local newest = math.max(tonumber(known[2]) or 0, tonumber(known[3]) or 0)
    if newest < claims or (state == 'dispatched' and newest == claims) then
      drop_lease(run)
      redis.call('HSET', key, 'claims', claims - 1, 'queue', queue)
      lease_begun(run, session, queue, claims, executor, '')
    end
  elseif state == 'waiting' or tonumber(known[3]) <= claims then
    drop_lease(run)
    local before, waits = tonumber(known[2]), tonumber(ARGV[at + 7])
    if claims >= before then redis.call('HSET', key, 'claims', claims, 'queue', queue) end
    -- nothing new and no back-off: the delay of a run whose agent was lacking stays
    if claims > before or claims == before and waits > 0 then
      redis.call('HSET', key, 'not_before', waits > 0 and now + waits or 0)
    end
  end
end
local function conform(first, records_running)
  local session = ARGV[first]
  local version = tonumber(redis.call('HGET', session_key(session), 'version') or '-1')
  if tonumber(ARGV[first + 3]) >= version then
    redis.call('HSET', session_key(session), 'slots', ARGV[first + 1], 'state', ARGV[first + 2], 'version',
      ARGV[first + 3])
  end
  for at = first + 4, #ARGV, 8 do conform_run(session, at, records_running) end
  place(session, false)
end
