-- include: keys
-- include: now
-- How many runs the living workers of a Celery queue can take, and how many spare doorbells they get: one a
-- worker, so that a worker that ends a run finds the next waiting.  Summed when an announcement comes or ends.
local function sum_capacity(queue)
  for _, silent in ipairs(redis.call('ZRANGEBYSCORE', workers_key(queue), '-inf', now)) do
    redis.call('ZREM', workers_key(queue), silent)
    redis.call('HDEL', EXECUTORS, silent)
  end
  local living = redis.call('ZRANGE', workers_key(queue), 0, -1, 'WITHSCORES')
  local total, spare, first_end, seen = 0, 0, now + 60000, {}
  for i = 1, #living, 2 do
    local slots, worker = string.match(redis.call('HGET', EXECUTORS, living[i]) or '', '^(%d+) (.*)$')
    if slots and not redis.call('ZSCORE', RETIRED, worker) then
      total = total + tonumber(slots)
      if tonumber(slots) > 0 and not seen[worker] then
        seen[worker] = true
        spare = spare + 1
      end
    end
    first_end = math.min(first_end, tonumber(living[i + 1]))
  end
  redis.call('HSET', CAPACITY, queue, total .. ' ' .. spare .. ' ' .. first_end)
  return total, spare
end
local function capacity(queue)
  local cached = redis.call('HGET', CAPACITY, queue) or ''
  local total, spare, first_end = string.match(cached, '^(%d+) (%d+) (%d+)')
  local left = tonumber(first_end or now) - now
  if left > 0 and left <= 60000 then return tonumber(total), tonumber(spare) end
  return sum_capacity(queue)
end
