-- Every key of a namespace, built from KEYS[1] (its root, which carries the hash tag) and nowhere else.
--   gate         string  the server's run_id while promotion is allowed
--   settings     hash    runs, sessions (limits; absent = none), ring_ms, hold ('held' | 'open'), hold_version
--   turn         string  counter: the order in which sessions became ready or got their last turn
--   known        set     every run id that has a hash
--   run:R        hash    session agent position queue claims state [claim executor nonce beat rings] not_before
--                        state: waiting | dispatched | begun; claim: the number of the lease
--   session:S    hash    slots state version line
--   open:S       zset    known open runs of S by position
--   held:S       set     leased runs of S
--   leases       zset    leased runs by the time of their grant (ms)
--   active       set     sessions that hold a lease
--   dispatched   zset    leased and not begun, by the time of the next ring (ms)
--   delayed      zset    sessions whose first ready run is in back-off, by its due time (ms)
--   queues       set     Celery queues with a session in a line
--   line:Q:busy  zset    ready sessions that hold leases, by turn;  line:Q:new: those that hold none
--   load:Q       set     leased runs of Celery queue Q
--   workers:Q    zset    executors that consume Q, by the end of their announcement (ms)
--   executors    hash    executor -> "slots worker"
--   capacity     hash    Q -> "slots spare until": the cached sums, and when they must be made again
--   retired      zset    workers that take no more, by when that is forgotten (ms)
--   callers:runs, callers:sessions  zset  slots acquired by callers, by their end (ms)
--   callers:of   hash    caller's run -> its session
--   subscribers:S  hash  process -> "count until"
--   restoring    string  who restores from SQL now;  comparing: that a comparison with SQL was made just now
local root = KEYS[1]
local GATE, SETTINGS, TURN, KNOWN = root .. 'gate', root .. 'settings', root .. 'turn', root .. 'known'
local LEASES, ACTIVE, DISPATCHED = root .. 'leases', root .. 'active', root .. 'dispatched'
local DELAYED, QUEUES, CAPACITY = root .. 'delayed', root .. 'queues', root .. 'capacity'
local EXECUTORS, RETIRED, RESTORING = root .. 'executors', root .. 'retired', root .. 'restoring'
local CALLER_RUNS, CALLER_SESSIONS = root .. 'callers:runs', root .. 'callers:sessions'
local CALLER_OF = root .. 'callers:of'
local function key_named(name) return root .. name end
local function run_key(run) return root .. 'run:' .. run end
local function session_key(session) return root .. 'session:' .. session end
local function open_key(session) return root .. 'open:' .. session end
local function held_key(session) return root .. 'held:' .. session end
local function line_key(line) return root .. 'line:' .. line end
local function load_key(queue) return root .. 'load:' .. queue end
local function subscribers_key(session) return root .. 'subscribers:' .. session end
local function workers_key(queue) return root .. 'workers:' .. queue end
