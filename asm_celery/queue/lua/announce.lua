-- Announce how many runs an executor can take from which Celery queues, then promote.
-- Guarantee: holds until its end unless renewed; a retired worker's executors count for nothing.
-- KEYS[1] string  the namespace root
-- ARGV[1] executor  ARGV[2] worker  ARGV[3] slots (0: takes no more)  ARGV[4] how long it holds (ms)
-- ARGV[5] ring_ms  ARGV[6...] Celery queues
-- Returns {'announced', lease ...}
-- Never: takes leases away.
-- include: promote
redis.call('HSET', SETTINGS, 'ring_ms', ARGV[5])
redis.call('ZREMRANGEBYSCORE', RETIRED, '-inf', now)
for at = 6, #ARGV do
  if ARGV[3] == '0' then
    redis.call('ZREM', workers_key(ARGV[at]), ARGV[1])
  else
    redis.call('HSET', EXECUTORS, ARGV[1], ARGV[3] .. ' ' .. ARGV[2])
    redis.call('ZADD', workers_key(ARGV[at]), now + tonumber(ARGV[4]), ARGV[1])
  end
  sum_capacity(ARGV[at])
end
if ARGV[3] == '0' then redis.call('HDEL', EXECUTORS, ARGV[1]) end
return reply('announced')
