#!lua flags=allow-oom
-- Take a member out of a set, sorted set or hash: nothing in SQL stands behind it.  Then promote.
-- Guarantee: idempotent; a session that is rightfully there is put back by the same script.
-- KEYS[1] string  the namespace root
-- ARGV[1] which: its name below the root, '' for none  ARGV[2] the member
-- Returns {'swept', lease ...}
-- Never: ends a run: finish does, when SQL has.
-- include: promote
local key = key_named(ARGV[1])
local remove = ({ set = 'SREM', zset = 'ZREM', hash = 'HDEL' })[redis.call('TYPE', key).ok]
if ARGV[1] ~= '' and remove then redis.call(remove, key, ARGV[2]) end
if redis.call('EXISTS', held_key(ARGV[2])) == 1 then redis.call('SADD', ACTIVE, ARGV[2]) end
place(ARGV[2], false)
return reply('swept')
