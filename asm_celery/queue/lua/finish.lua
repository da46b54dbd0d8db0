#!lua flags=allow-oom
-- Forget a run that SQL says is terminal: it ran to its end, or was withdrawn.  Frees its place, slot and
-- limiter slot, then promotes.
-- Guarantee: idempotent; SQL has decided, so no claim number is compared.
-- KEYS[1] string  the namespace root
-- ARGV[1] run id
-- Returns {word, lease ...}; word: 'absent', 'waiting', 'dispatched' or 'begun': what it was
-- Never: is called before the terminal status is committed.
-- include: promote
local was = redis.call('HGET', run_key(ARGV[1]), 'state') or 'absent'
local session = forget_run(ARGV[1])
if session then place(session, false) end
return reply(was)
