#!lua flags=no-writes
-- Read begun leases with their beats, oldest grant first, for an observer that times their silence.
-- Guarantee: one consistent page.
-- KEYS[1] string  the namespace root
-- ARGV[1] index of the first  ARGV[2] how many at most
-- Returns {how many leases there are, {run, session, claim, executor, beat} ...}
-- Never: judges.
-- include: keys
local page = { tostring(redis.call('ZCARD', LEASES)) }
for _, run in ipairs(redis.call('ZRANGE', LEASES, ARGV[1], ARGV[1] + ARGV[2] - 1)) do
  local lease = redis.call('HMGET', run_key(run), 'session', 'claim', 'executor', 'beat', 'state')
  if lease[5] == 'begun' then page[#page + 1] = { run, lease[1], lease[2], lease[3], lease[4] } end
end
return page
