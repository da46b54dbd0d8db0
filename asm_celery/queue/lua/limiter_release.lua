#!lua flags=allow-oom
-- Give a caller's slot back, then promote.  Releasing a session releases its runs too.
-- Guarantee: idempotent; an unknown id is released already.
-- KEYS[1] string  the namespace root
-- ARGV[1] 'runs' | 'sessions'  ARGV[2] id
-- Returns {'released' | 'absent', lease ...}
-- Never: touches the lease of a dispatched run.
-- include: promote
local removed
if ARGV[1] == 'runs' then
  removed = redis.call('ZREM', CALLER_RUNS, ARGV[2])
  redis.call('HDEL', CALLER_OF, ARGV[2])
else
  removed = redis.call('ZREM', CALLER_SESSIONS, ARGV[2])
  local of = redis.call('HGETALL', CALLER_OF)
  for at = 1, #of, 2 do
    if of[at + 1] == ARGV[2] then
      redis.call('ZREM', CALLER_RUNS, of[at])
      redis.call('HDEL', CALLER_OF, of[at])
    end
  end
end
return reply(removed == 1 and 'released' or 'absent')
