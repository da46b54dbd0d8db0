#!lua flags=allow-oom
-- Take a silent lease over: the lease itself goes to the observer, and its slot stays taken until the fate
-- of the run is written, so that order holds.
-- Guarantee: compare-and-set on (claim, executor, beat): one observer wins, a living executor's beat stops it.
-- KEYS[1] string  the namespace root
-- ARGV[1] run id  ARGV[2] claim number  ARGV[3] executor seen  ARGV[4] beat seen  ARGV[5] the observer
-- Returns {'taken'} | {'kept'}
-- Never: frees anything.
-- include: keys
local run = run_key(ARGV[1])
local lease = redis.call('HMGET', run, 'state', 'claim', 'executor', 'beat')
if lease[1] ~= 'begun' or lease[2] ~= ARGV[2] or lease[3] ~= ARGV[3] or lease[4] ~= ARGV[4] then
  return { 'kept' }
end
redis.call('HSET', run, 'executor', ARGV[5])
redis.call('HINCRBY', run, 'beat', 1)
return { 'taken' }
