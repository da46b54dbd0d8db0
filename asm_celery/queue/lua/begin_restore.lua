-- Ask whether Redis is cold, and if so take the right to restore it from SQL.
-- Guarantee: one restorer at a time; its right ends by itself, the time given after it last asked.
-- KEYS[1] string  the namespace root
-- ARGV[1] the restorer  ARGV[2] how long its right lasts (ms)
-- Returns {'open'} nothing to do | {'mine'} restore now | {'busy'} another does
-- Never: removes anything.
-- include: gate
if gate_open() then return { 'open' } end
-- ours always ends by itself: what does not was put there by somebody else
if redis.call('PTTL', RESTORING) == -1 then redis.call('DEL', RESTORING) end
local restorer = redis.call('GET', RESTORING)
if restorer and restorer ~= ARGV[1] then return { 'busy' } end
redis.call('SET', RESTORING, ARGV[1], 'PX', ARGV[2])
return { 'mine' }
