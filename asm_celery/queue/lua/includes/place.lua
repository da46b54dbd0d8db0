-- include: keys
-- include: now
-- Put a session where it belongs: into its queue's ready line, into `delayed`, or nowhere.
-- A run is ready when it is among the first `slots` known open runs of its session, waits, is due, and the
-- session may start runs: the claim's own rule.
local function first_ready(session, slots, state)
  if state == 'paused' or state == 'completed' then return nil, nil end
  local due
  for _, run in ipairs(redis.call('ZRANGE', open_key(session), 0, slots - 1)) do
    local entry = redis.call('HMGET', run_key(run), 'state', 'not_before')
    if entry[1] == 'waiting' then
      local at = tonumber(entry[2]) or 0
      if at <= now then return run, nil end
      due = due and math.min(due, at) or at
    end
  end
  return nil, due
end
local function leave_line(session, line)
  if line and line ~= '' then redis.call('ZREM', line_key(line), session) end
end
local function forget_session(session, line)
  leave_line(session, line)
  redis.call('ZREM', DELAYED, session)
  redis.call('DEL', session_key(session))
end
-- to_back: it just got a turn, so it queues behind the others; else it keeps the turn it had.
local function place(session, to_back)
  local about = redis.call('HMGET', session_key(session), 'slots', 'state', 'line')
  local line = about[3]
  if redis.call('EXISTS', open_key(session)) == 0 then return forget_session(session, line) end
  local run, due = first_ready(session, tonumber(about[1]) or 1, about[2])
  local turn = line and line ~= '' and redis.call('ZSCORE', line_key(line), session)
  local wanted = ''
  if run then
    local queue = redis.call('HGET', run_key(run), 'queue')
    wanted = queue .. (redis.call('EXISTS', held_key(session)) == 1 and ':busy' or ':new')
    if to_back or not turn then turn = redis.call('INCR', TURN) end
    redis.call('ZADD', line_key(wanted), turn, session)
    redis.call('SADD', QUEUES, queue)
  end
  if line ~= wanted then
    leave_line(session, line)
    redis.call('HSET', session_key(session), 'line', wanted)
  end
  if due and not run then
    redis.call('ZADD', DELAYED, due, session)
  else
    redis.call('ZREM', DELAYED, session)
  end
end
