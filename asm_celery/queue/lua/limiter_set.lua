-- Set the limits, then promote.  A lower limit stops nothing that runs.
-- Guarantee: idempotent.
-- KEYS[1] string  the namespace root
-- ARGV[1] limit of runs, '' for none  ARGV[2] limit of sessions, '' for none
-- Returns {'set', lease ...}
-- Never: is the truth: SQL's settings are, and a restore writes them here again.
-- include: promote
for at, kind in ipairs({ 'runs', 'sessions' }) do
  if ARGV[at] == '' then
    redis.call('HDEL', SETTINGS, kind)
  else
    redis.call('HSET', SETTINGS, kind, ARGV[at])
  end
end
return reply('set')
