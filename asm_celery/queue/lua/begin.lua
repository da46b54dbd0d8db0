#!lua flags=allow-oom
-- Turn the lease dispatched under a claim number into one begun by this executor; its beat starts.
-- Guarantee: one doorbell of a claim begins, whatever the broker repeats; the same nonce may ask again.
-- KEYS[1] string  the namespace root
-- ARGV[1] run id  ARGV[2] claim number  ARGV[3] executor  ARGV[4] nonce of this delivery
-- Returns {'begun', agent} | {'again', agent} the answer to the first was lost | {'spare'} drop the doorbell
-- Never: decides whether the run may run: the claim in SQL does.
-- include: keys
local run = run_key(ARGV[1])
local lease = redis.call('HMGET', run, 'state', 'claim', 'nonce', 'agent')
if lease[2] ~= ARGV[2] then return { 'spare' } end
if lease[1] == 'begun' then return lease[3] == ARGV[4] and { 'again', lease[4] } or { 'spare' } end
redis.call('HSET', run, 'state', 'begun', 'executor', ARGV[3], 'nonce', ARGV[4], 'beat', 0)
redis.call('ZREM', DISPATCHED, ARGV[1])
return { 'begun', lease[4] }
