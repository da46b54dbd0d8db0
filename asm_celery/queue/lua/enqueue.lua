-- Record a session's open runs as SQL has them, then promote.  Also the restore's and the repair's writer.
-- Guarantee: idempotent; a run that is leased under a later claim is left alone; order is by position,
--   so a late call neither overtakes nor stalls.
-- KEYS[1] string  the namespace root
-- ARGV[1] session id  ARGV[2] slots  ARGV[3] state  ARGV[4] state version
-- ARGV[5...] for each run: run id, agent, position, queue, status, claims, executor, waits (ms)
-- Returns {'recorded', lease ...}; a lease is {run, session, agent, claim, queue}
-- Never: takes a time or a payload from the caller, promotes behind a closed gate.
-- include: conform
-- include: promote
conform(1, true)
return reply('recorded')
