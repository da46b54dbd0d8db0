-- include: keys
-- include: now
-- How many runs the living workers of a Celery queue can take, plus one a worker, so that a worker that ends
-- a run finds the next doorbell waiting.  Summed when an announcement comes or ends, else read.
local function sum_capacity(queue)
  for _, silent in ipairs(redis.call('ZRANGEBYSCORE', workers_key(queue), '-inf', now)) do
    redis.call('ZREM', workers_key(queue), silent)
    redis.call('HDEL', EXECUTORS, silent)
  end
  local living = redis.call('ZRANGE', workers_key(queue), 0, -1, 'WITHSCORES')
  local total, first_end, seen = 0, now + 60000, {}
  for i = 1, #living, 2 do
    local slots, worker = string.match(redis.call('HGET', EXECUTORS, living[i]) or '', '^(%d+) (.*)$')
    if slots and not redis.call('ZSCORE', RETIRED, worker) then
      total = total + tonumber(slots)
      if tonumber(slots) > 0 and not seen[worker] then
        seen[worker] = true
        total = total + 1
      end
    end
    first_end = math.min(first_end, tonumber(living[i + 1]))
  end
  redis.call('HSET', CAPACITY, queue, total .. ' ' .. first_end)
  return total
end
local function capacity(queue)
  local total, first_end = string.match(redis.call('HGET', CAPACITY, queue) or '', '^(%d+) (%d+)')
  if total and tonumber(first_end) > now then return tonumber(total) end
  return sum_capacity(queue)
end
