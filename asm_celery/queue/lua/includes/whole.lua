-- include: lease
-- include: place
-- Is what Redis says of a run whole?
local STATES = { waiting = true, dispatched = true, begun = true }
-- What audit sees of a run, and rewrite must find unchanged; and whether it makes sense.  A hash that is half
-- of one, or holds what we never write, is as good as none.
local function seen_of(run)
  local entry = redis.call('HMGET', run_key(run), 'state', 'claims', 'claim', 'executor', 'session', 'not_before',
    'beat')
  local state = entry[1]
  local is_sound = STATES[state] and entry[5] and tonumber(entry[2]) and tonumber(entry[6])
    and (state == 'waiting' or tonumber(entry[3])) and (state ~= 'begun' or entry[4] and tonumber(entry[7]))
  for at = 1, 6 do entry[at] = entry[at] or '' end
  return table.concat(entry, ' ', 1, 6), is_sound and true or false, entry
end
-- Write again what a lease lost, if one of its sets was lost or damaged.
local function hold_again(run, session)
  local entry = redis.call('HMGET', run_key(run), 'state', 'queue')
  if entry[1] == 'waiting' then return end
  if not redis.call('ZSCORE', LEASES, run) or redis.call('SISMEMBER', held_key(session), run) == 0
    or redis.call('SISMEMBER', load_key(entry[2]), run) == 0 or redis.call('SISMEMBER', ACTIVE, session) == 0 then
    hold(run, session, entry[2])
  end
  if entry[1] == 'dispatched' and not redis.call('ZSCORE', DISPATCHED, run) then
    redis.call('ZADD', DISPATCHED, now, run)
  end
  if entry[1] == 'begun' then redis.call('ZREM', DISPATCHED, run) end
end
-- Whether it stands where `place` would put it.
local function is_placed(session, about, line, is_busy)
  local run, due = first_ready(session, tonumber(about[1]) or 1, about[2])
  local is_delayed = redis.call('ZSCORE', DELAYED, session)
  if not run then return line == '' and (not due or is_delayed) end
  if line == '' then return is_delayed end
  local queue = redis.call('HGET', run_key(run), 'queue')
  return line == queue .. (is_busy and ':busy' or ':new') and redis.call('ZSCORE', line_key(line), session)
    and redis.call('SISMEMBER', QUEUES, queue) == 1
end
-- What keeps a slot of a session and has no hash: nothing that ends it can find it there.
local function strays_of(session)
  local slots = tonumber(redis.call('HGET', session_key(session), 'slots')) or 1
  local first, held = redis.call('ZRANGE', open_key(session), 0, slots - 1), redis.call('SMEMBERS', held_key(session))
  local found = {}
  for at = 1, #first + #held do
    local run = first[at] or held[at - #first]
    if redis.call('EXISTS', run_key(run)) == 0 then found[#found + 1] = run end
  end
  return found
end
