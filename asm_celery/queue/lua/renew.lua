#!lua flags=allow-oom
-- Raise the beat of each lease this executor holds.
-- Guarantee: a lease taken over or lost is reported, never revived.
-- KEYS[1] string  the namespace root
-- ARGV[1] executor  ARGV[2...] pairs: run id, claim number
-- Returns a word a pair: 'held' | 'taken' (another holds it) | 'unknown' (Redis lost it: record it anew)
-- Never: extends a lease by a time: only an observer judges silence.
-- include: keys
local words = {}
for at = 2, #ARGV, 2 do
  local run = run_key(ARGV[at])
  local lease = redis.call('HMGET', run, 'state', 'claim', 'executor', 'claims')
  local word = 'unknown'
  if lease[2] == ARGV[at + 1] and lease[1] == 'begun' then
    word = lease[3] == ARGV[1] and 'held' or 'taken'
  elseif (tonumber(lease[4]) or -1) >= tonumber(ARGV[at + 1]) then
    word = 'taken'
  end
  if word == 'held' then redis.call('HINCRBY', run, 'beat', 1) end
  words[#words + 1] = word
end
return words
