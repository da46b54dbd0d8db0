-- Make Redis say of a run, or of a session only, what SQL says, whatever it said before; then promote.
-- Guarantee: compare-and-set on what `audit` saw; what has changed since is left to the next look; idempotent.
-- KEYS[1] string  the namespace root
-- ARGV[1] run id, '' for its session only  ARGV[2] what audit saw
-- ARGV[3] session id  ARGV[4] slots  ARGV[5] state  ARGV[6] state version
-- ARGV[7...] runs as in enqueue
-- Returns {'rewritten' | 'changed', lease ...}
-- Never: is called for a single look: what two looks saw alike is no move on its way.
-- include: conform
-- include: promote
local session = ARGV[3]
local about = redis.call('HMGET', session_key(session), 'slots', 'state', 'version')
local seen = (about[1] or '') .. ' ' .. (about[2] or '') .. ' ' .. (about[3] or '')
if ARGV[1] ~= '' then seen = seen_of(ARGV[1]) end
if seen ~= ARGV[2] then return reply('changed') end
if ARGV[1] ~= '' then
  purge(ARGV[1], session)
else
  redis.call('HDEL', session_key(session), 'version')
  if redis.call('EXISTS', held_key(session)) == 0 then redis.call('SREM', ACTIVE, session) end
end
conform(3, true)
return reply('rewritten')
