-- Say that a worker takes no more runs; its executors' announcements count for nothing from now on.
-- Guarantee: idempotent; forgotten after an hour, when the worker is long gone.
-- KEYS[1] string  the namespace root
-- ARGV[1] worker  ARGV[2...] Celery queues it consumed
-- Returns {'retired'}
-- Never: takes leases away.
-- include: capacity
redis.call('ZADD', RETIRED, now + 3600000, ARGV[1])
for at = 2, #ARGV do sum_capacity(ARGV[at]) end
return { 'retired' }
