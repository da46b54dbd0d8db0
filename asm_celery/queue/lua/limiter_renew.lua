-- Extend the slots a caller's process still uses.
-- Guarantee: a slot that has ended is not revived.
-- KEYS[1] string  the namespace root
-- ARGV[1] how long they hold (ms)  ARGV[2...] pairs: 'runs' | 'sessions', id
-- Returns a word a pair: 'held' | 'ended'
-- Never: acquires.
-- include: limits
local words = {}
active_runs()
active_sessions()
for at = 2, #ARGV, 2 do
  local slots = ARGV[at] == 'runs' and CALLER_RUNS or CALLER_SESSIONS
  local held = redis.call('ZSCORE', slots, ARGV[at + 1])
  if held then redis.call('ZADD', slots, 'XX', now + tonumber(ARGV[1]), ARGV[at + 1]) end
  words[#words + 1] = held and 'held' or 'ended'
end
return words
