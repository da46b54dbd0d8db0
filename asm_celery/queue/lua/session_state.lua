-- Tell Redis of a session's state; the higher version is kept.  Then promote.
-- Guarantee: idempotent; calls may arrive in any order.
-- KEYS[1] string  the namespace root
-- ARGV[1] session id  ARGV[2] state  ARGV[3] version
-- Returns {'kept' | 'older' | 'absent', lease ...}; absent: the session has no open run here
-- Never: stops what runs.
-- include: promote
local session, word = session_key(ARGV[1]), 'absent'
local version = redis.call('HGET', session, 'version')
if version then
  word = 'older'
  if tonumber(ARGV[3]) > tonumber(version) then
    word = 'kept'
    redis.call('HSET', session, 'state', ARGV[2], 'version', ARGV[3])
    place(ARGV[1], false)
  end
end
return reply(word)
