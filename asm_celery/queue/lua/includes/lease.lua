-- include: keys
-- include: now
-- A lease is held in four sets at once; only these functions write them.
local function hold(run, session, queue)
  redis.call('ZADD', LEASES, now, run)
  redis.call('SADD', held_key(session), run)
  redis.call('SADD', ACTIVE, session)
  redis.call('SADD', load_key(queue), run)
end
-- The executor's lease, begun under this claim; also how a restore writes what SQL says is running.
local function lease_begun(run, session, queue, claim, executor, nonce)
  redis.call('HSET', run_key(run), 'state', 'begun', 'claim', claim, 'executor', executor, 'nonce', nonce,
    'beat', 0)
  redis.call('ZREM', DISPATCHED, run)
  hold(run, session, queue)
end
local function drop_lease(run)
  local entry = redis.call('HMGET', run_key(run), 'session', 'queue', 'state')
  if not entry[1] or entry[3] == 'waiting' then return end
  redis.call('ZREM', LEASES, run)
  redis.call('ZREM', DISPATCHED, run)
  redis.call('SREM', load_key(entry[2]), run)
  redis.call('SREM', held_key(entry[1]), run)
  if redis.call('EXISTS', held_key(entry[1])) == 0 then redis.call('SREM', ACTIVE, entry[1]) end
  redis.call('HDEL', run_key(run), 'claim', 'executor', 'nonce', 'beat', 'rings')
  redis.call('HSET', run_key(run), 'state', 'waiting')
end
-- Take a run out of everything, whatever its hash says.
local function purge(run, session)
  local queue = redis.call('HGET', run_key(run), 'queue')
  redis.call('ZREM', LEASES, run)
  redis.call('ZREM', DISPATCHED, run)
  redis.call('SREM', KNOWN, run)
  redis.call('DEL', run_key(run))
  if queue then redis.call('SREM', load_key(queue), run) end
  if not session then return end
  redis.call('ZREM', open_key(session), run)
  redis.call('SREM', held_key(session), run)
  if redis.call('EXISTS', held_key(session)) == 0 then redis.call('SREM', ACTIVE, session) end
end
local function forget_run(run)
  local session = redis.call('HGET', run_key(run), 'session')
  if not session then return purge(run) end
  drop_lease(run)
  redis.call('ZREM', open_key(session), run)
  redis.call('DEL', run_key(run))
  redis.call('SREM', KNOWN, run)
  return session
end
