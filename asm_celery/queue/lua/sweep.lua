#!lua flags=allow-oom
-- Take a member out of a set, sorted set or hash: nothing in SQL stands behind it.  Then promote.
-- A run without a hash that is taken out of a session's runs leaves all of them.
-- Guarantee: idempotent; a session that is rightfully there is put back by the same script.
-- KEYS[1] string  the namespace root
-- ARGV[1] which: its name below the root, '' for none  ARGV[2] the member
-- Returns {'swept', lease ...}
-- Never: ends a run: finish does, when SQL has.
-- include: lease
-- include: promote
local key = key_named(ARGV[1])
local remove = ({ set = 'SREM', zset = 'ZREM', hash = 'HDEL' })[redis.call('TYPE', key).ok]
if ARGV[1] ~= '' and remove then redis.call(remove, key, ARGV[2]) end
local function drop_stray(run, session)
  if redis.call('EXISTS', run_key(run)) == 0 then purge(run, session) end
end
local session = string.match(ARGV[1], '^held:(.+)$') or string.match(ARGV[1], '^open:(.+)$')
if session then
  drop_stray(ARGV[2], session)
  place(session, false)
end
-- the member may be a session: what it holds is rightful, unless it is a stray
for _, run in ipairs(redis.call('SMEMBERS', held_key(ARGV[2]))) do drop_stray(run, ARGV[2]) end
if redis.call('EXISTS', held_key(ARGV[2])) == 1 then redis.call('SADD', ACTIVE, ARGV[2]) end
place(ARGV[2], false)
return reply('swept')
