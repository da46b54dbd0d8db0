-- include: keys
-- include: now
-- Put a lease's doorbell on the broker's own list.  BELL and BELL_LIST stand above the script where broker and
-- coordination are one server; where they are nil, the caller sends what the script returns.
--   lease  { run, session, agent, claim, queue }; returned as it is
local function ring_for(lease)
  if not BELL then return lease end
  local run, claim = lease[1], lease[4]
  local task = claim == '1' and run or run .. '.' .. claim
  local words = { run = run, session = lease[2], agent = lease[3], claim = claim, queue = lease[5],
    task = task, tag = task .. ':' .. now }
  -- a list of another type must not break off a script that has granted: the lease is rung for again
  redis.pcall('LPUSH', BELL_LIST .. lease[5], (string.gsub(BELL, '@(%l+)@', words)))
  return lease
end
