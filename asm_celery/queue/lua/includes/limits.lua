-- include: keys
-- include: now
-- The global semaphore: what is leased to runs, and what callers acquired for their own work.
local NO_LIMIT = 9007199254740991
local function limit_of(kind)
  return tonumber(redis.call('HGET', SETTINGS, kind) or '') or NO_LIMIT
end
local function active_runs()
  for _, ended in ipairs(redis.call('ZRANGEBYSCORE', CALLER_RUNS, '-inf', now)) do
    redis.call('ZREM', CALLER_RUNS, ended)
    redis.call('HDEL', CALLER_OF, ended)
  end
  return redis.call('ZCARD', LEASES) + redis.call('ZCARD', CALLER_RUNS)
end
local function active_sessions()
  redis.call('ZREMRANGEBYSCORE', CALLER_SESSIONS, '-inf', now)
  return redis.call('SCARD', ACTIVE) + redis.call('ZCARD', CALLER_SESSIONS)
end
