-- Open the gate after a full restore, then promote.
-- Guarantee: only the restorer that still holds its right opens it; called again, it says so again.
-- KEYS[1] string  the namespace root
-- ARGV[1] the restorer
-- Returns {'open' | 'lost', lease ...}
-- Never: opens for a server process other than this one.
-- include: promote
if redis.call('GET', RESTORING) ~= ARGV[1] then return { gate_open() and 'open' or 'lost' } end
redis.call('SET', GATE, server_id())
redis.call('DEL', RESTORING)
return reply('open')
