-- Open the gate after a full restore, then promote.
-- Guarantee: only the restorer that still holds its right opens it.
-- KEYS[1] string  the namespace root
-- ARGV[1] the restorer
-- Returns {'open' | 'lost', lease ...}
-- Never: opens for a server process other than this one.
-- include: promote
if redis.call('GET', RESTORING) ~= ARGV[1] then return { 'lost' } end
redis.call('SET', GATE, server_id())
redis.call('DEL', RESTORING)
return reply('open')
