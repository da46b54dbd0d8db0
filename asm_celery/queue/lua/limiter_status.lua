-- Read the semaphore.
-- Guarantee: one consistent picture; slots that have ended are not counted.
-- KEYS[1] string  the namespace root
-- Returns {active runs, limit of runs or '', active sessions, limit of sessions or ''}
-- Never: grants.
-- include: limits
return {
  tostring(active_runs()), redis.call('HGET', SETTINGS, 'runs') or '',
  tostring(active_sessions()), redis.call('HGET', SETTINGS, 'sessions') or '',
}
