-- Say that a worker takes no more runs; its executors' announcements count for nothing from now on.
-- Guarantee: idempotent; forgotten after an hour, when the worker is long gone (no other has its name).
-- KEYS[1] string  the namespace root
-- ARGV[1] worker
-- Returns {'retired'}
-- Never: takes leases away.
-- include: keys
-- include: now
redis.call('ZADD', RETIRED, now + 3600000, ARGV[1])
-- every sum is made anew when it is next asked for
redis.call('DEL', CAPACITY)
return { 'retired' }
