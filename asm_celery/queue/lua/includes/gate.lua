-- include: keys
-- The gate is open while it names this very server process: after a restart, a failover or a flush it does
-- not, even if the client reconnected without noticing, and nothing is promoted until a restore from SQL.
local function server_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
-- Each session that is active holds a lease or more: with fewer leases the semaphore was lost, and what it
-- counted would be granted anew, beyond every limit.
local function gate_open()
  local named = redis.call('GET', GATE)
  return named and named == server_id() and redis.call('ZCARD', LEASES) >= redis.call('SCARD', ACTIVE)
end
-- An operator's hold is another thing: Redis is warm, and still nothing is promoted.
local function is_held()
  return redis.call('HGET', SETTINGS, 'hold') == 'held'
end
