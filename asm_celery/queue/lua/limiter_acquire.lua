-- Take a slot of the semaphore for a caller's own work.
-- Guarantee: idempotent by id; a slot ends by itself unless renewed, so none can leak.
-- KEYS[1] string  the namespace root
-- ARGV[1] 'runs' | 'sessions'  ARGV[2] id of the run or session  ARGV[3] how long it holds (ms)
-- ARGV[4] for a run: its session id
-- Returns {'acquired' | 'again' | 'full', limit, active}
-- Never: makes a dispatched run wait longer than its turn: it takes one slot like any other.
-- include: limits
local slots = ARGV[1] == 'runs' and CALLER_RUNS or CALLER_SESSIONS
local active = ARGV[1] == 'runs' and active_runs() or active_sessions()
local limit, word = limit_of(ARGV[1]), 'again'
if not redis.call('ZSCORE', slots, ARGV[2]) then
  if active >= limit then return { 'full', tostring(limit), tostring(active) } end
  word, active = 'acquired', active + 1
end
redis.call('ZADD', slots, now + tonumber(ARGV[3]), ARGV[2])
if ARGV[1] == 'runs' then redis.call('HSET', CALLER_OF, ARGV[2], ARGV[4]) end
return { word, string.format('%.0f', limit), tostring(active) }
