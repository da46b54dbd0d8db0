#!lua flags=allow-oom
-- Return a begun lease: its claim was refused, or its attempt was given back in SQL.  Then record what SQL
-- says of the session, and promote.  Without this, a refused claim would hold its slot for ever.
-- Guarantee: compare-and-set on (claim, executor): a lease that was taken over stays; the runs are
--   recorded all the same; idempotent.
-- KEYS[1] string  the namespace root
-- ARGV[1] run id  ARGV[2] claim number  ARGV[3] executor
-- ARGV[4] 'keep' the run as recorded below, or 'lacking': keep it, due after a delay that grows from 250 ms
--   to 60 s, because this worker lacks its agent
-- ARGV[5] session id  ARGV[6] slots  ARGV[7] state  ARGV[8] state version
-- ARGV[9...] runs as in enqueue
-- Returns {word, lease ...}; word: 'absent' (not this executor's lease), 'returned', or for 'lacking' the ms
--   since the first worker lacked it
-- Never: ends a run: finish does, when SQL has.
-- include: conform
-- include: promote
local run, word = ARGV[1], 'absent'
local lease = redis.call('HMGET', run_key(run), 'state', 'claim', 'executor')
if lease[1] == 'begun' and lease[2] == ARGV[2] and lease[3] == ARGV[3] then
  word = 'returned'
  drop_lease(run)
end
-- A run that was running a moment ago and is unknown now has ended since: recorded, its lease would stay.
conform(5, false)
if ARGV[4] == 'lacking' and word == 'returned' then
  redis.call('HSETNX', run_key(run), 'lacked_at', now)
  local times = redis.call('HINCRBY', run_key(run), 'lacked', 1)
  redis.call('HSET', run_key(run), 'not_before', now + math.min(60000, 125 * 2 ^ math.min(times, 10)))
  word = string.format('%.0f', now - tonumber(redis.call('HGET', run_key(run), 'lacked_at')))
  place(ARGV[5], true)
end
return reply(word)
