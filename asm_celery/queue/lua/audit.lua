#!lua flags=no-writes
-- Compare what SQL says of open runs and their sessions with what is here.
-- Guarantee: one consistent picture.
-- KEYS[1] string  the namespace root
-- ARGV[1...] for each run 8 values: run id, session, position, status, claims, and its session's slots, state
--   and version
-- Returns {run, word, seen} for each that differs: what `rewrite` must find unchanged; {run, 'stray', session} for
--   each that keeps a slot and has no hash: to be swept if SQL says that it is over
--   of the run: 'unknown', 'garbled', 'unlisted', 'lease_unlisted', 'held_by_nothing', 'running_without_lease',
--   'other_claim'; of its session: 'session_differs', 'active_by_nothing', 'unplaced'
-- Never: changes anything.
-- include: whole
local function lease_word(run, session, state, queue)
  local sets = (redis.call('ZSCORE', LEASES, run) and 1 or 0) + redis.call('SISMEMBER', held_key(session), run)
    + redis.call('SISMEMBER', load_key(queue), run)
  local is_rung = redis.call('ZSCORE', DISPATCHED, run) and true or false
  if state == 'waiting' then return (sets > 0 or is_rung) and 'held_by_nothing' end
  if sets < 3 or is_rung ~= (state == 'dispatched') or redis.call('SISMEMBER', ACTIVE, session) == 0 then
    return 'lease_unlisted'
  end
end
local function run_word(at)
  local run, session, status, claims = ARGV[at], ARGV[at + 1], ARGV[at + 3], tonumber(ARGV[at + 4])
  local seen, is_sound, entry = seen_of(run)
  local state, claim = entry[1], tonumber(entry[3])
  if redis.call('EXISTS', run_key(run)) == 0 then return 'unknown', seen end
  -- no back-off is as long as an hour
  if not is_sound or entry[5] ~= session or tonumber(entry[6]) > now + 3600000 then return 'garbled', seen end
  local position = tonumber(redis.call('ZSCORE', open_key(session), run) or '')
  if position ~= tonumber(ARGV[at + 2]) or redis.call('SISMEMBER', KNOWN, run) == 0 then return 'unlisted', seen end
  local word = lease_word(run, session, state, redis.call('HGET', run_key(run), 'queue') or '')
  if word then return word, seen end
  if status == 'running' and state == 'waiting' then return 'running_without_lease', seen end
  if (claim or tonumber(entry[2])) ~= claims + ((claim and status ~= 'running') and 1 or 0) then
    return 'other_claim', seen
  end
end
local function session_word(at)
  local session = ARGV[at + 1]
  local about = redis.call('HMGET', session_key(session), 'slots', 'state', 'version', 'line')
  local seen = (about[1] or '') .. ' ' .. (about[2] or '') .. ' ' .. (about[3] or '')
  if seen ~= ARGV[at + 5] .. ' ' .. ARGV[at + 6] .. ' ' .. ARGV[at + 7] then return 'session_differs', seen end
  local is_held, line = redis.call('EXISTS', held_key(session)), about[4] or ''
  if redis.call('SISMEMBER', ACTIVE, session) ~= is_held then return 'active_by_nothing', seen end
  if not is_placed(session, about, line, is_held == 1) then return 'unplaced', seen end
end
local answer, looked = {}, {}
for at = 1, #ARGV, 8 do
  local word, seen = run_word(at)
  for _, stray in ipairs(looked[ARGV[at + 1]] and {} or strays_of(ARGV[at + 1])) do
    answer[#answer + 1] = { stray, 'stray', ARGV[at + 1] }
  end
  if not word and not looked[ARGV[at + 1]] then word, seen = session_word(at) end
  looked[ARGV[at + 1]] = true
  if word then answer[#answer + 1] = { ARGV[at], word, seen } end
end
return answer
