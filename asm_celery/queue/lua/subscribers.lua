-- Count a process's subscribers of a session, or read the sum of all processes.
-- Guarantee: a process that stops counting is left out after its time; eventually right.
-- KEYS[1] string  the namespace root
-- ARGV[1] session id  ARGV[2] process, '' to read only  ARGV[3] how many, 0 when none is left
-- ARGV[4] how long the count holds (ms)
-- Returns {the sum as text}
-- Never: counts a subscriber twice: a process overwrites its own count.
-- include: keys
-- include: now
local key, total = subscribers_key(ARGV[1]), 0
if ARGV[2] ~= '' then
  redis.call('HSET', key, ARGV[2], ARGV[3] .. ' ' .. (now + tonumber(ARGV[4])))
  redis.call('PEXPIRE', key, 86400000)
end
local counts = redis.call('HGETALL', key)
for at = 1, #counts, 2 do
  local count, ends = string.match(counts[at + 1], '^(%d+) (%d+)')
  if not ends or tonumber(ends) <= now or count == '0' then
    redis.call('HDEL', key, counts[at])
  else
    total = total + tonumber(count)
  end
end
return { tostring(total) }
