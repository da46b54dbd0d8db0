"""The real scripts as a function from a state of Redis to the next: what the search explores with.

A state is a namespace's keys as text, made canonical: times are only due or not due, turns only an order,
beats and nonces nothing at all.  A call loads a state into the server, runs the script there, reads the
state back, and is remembered, so each distinct call is made once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

from asm_celery.keys import Keys
from asm_celery.queue.run_queue import RunQueue
from asm_celery.queue.scripts import source, verbs

EMPTY: Final = 0
# A time that has not come, in ms: what the scripts see of "later".
_LATER: Final = "9000000000000"

_LOAD: Final = f"""#!lua
local root = KEYS[1]
for _, key in ipairs(redis.call('KEYS', root .. '*')) do redis.call('DEL', key) end
local turns = 0
for _, item in ipairs(cjson.decode(ARGV[1])) do
  local key, kind = root .. item[1], item[2]
  if kind == 'string' then
    redis.call('SET', key, item[3])
  elseif kind == 'set' then
    for at = 3, #item do redis.call('SADD', key, item[at]) end
  else
    for at = 3, #item, 2 do
      if kind == 'hash' then
        redis.call('HSET', key, item[at], item[at + 1])
      else
        redis.call('ZADD', key, item[at + 1] == 'later' and {_LATER} or item[at + 1], item[at])
      end
    end
    if kind == 'zset' and string.match(item[1], '^line:') then turns = turns + (#item - 2) / 2 end
  end
end
if turns > 0 then redis.call('SET', root .. 'turn', turns) end
return 'loaded'
"""

_READ: Final = f"""#!lua
local root = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function when(score) return tonumber(score) > now and 'later' or '0' end
local function pairs_of(flat)
  local names, values = {{}}, {{}}
  for at = 1, #flat, 2 do
    names[#names + 1] = flat[at]
    values[flat[at]] = flat[at + 1]
  end
  table.sort(names)
  return names, values
end
local answer, turns = {{}}, {{}}
local keys = redis.call('KEYS', root .. '*')
table.sort(keys)
for _, key in ipairs(keys) do
  local name, kind = string.sub(key, #root + 1), redis.call('TYPE', key).ok
  local item = {{ name, kind }}
  if kind == 'string' then
    item[3] = redis.call('GET', key)
  elseif kind == 'set' then
    local members = redis.call('SMEMBERS', key)
    table.sort(members)
    for _, member in ipairs(members) do item[#item + 1] = member end
  elseif kind == 'hash' then
    local names, values = pairs_of(redis.call('HGETALL', key))
    for _, field in ipairs(names) do
      local value = values[field]
      if string.match(name, '^run:') then
        if field == 'not_before' then value = when(value) == 'later' and '{_LATER}' or '0' end
        if field == 'beat' or field == 'rings' then value = '0' end
        if field == 'nonce' then value = '' end
      elseif name == 'capacity' then
        local total, ends = string.match(value, '^(%d+) (%d+)')
        value = total .. (when(ends) == 'later' and ' {_LATER}' or ' 0')
      end
      item[#item + 1] = field
      item[#item + 1] = value
    end
  else
    local names, values = pairs_of(redis.call('ZRANGE', key, 0, -1, 'WITHSCORES'))
    for _, member in ipairs(names) do
      item[#item + 1] = member
      item[#item + 1] = values[member]
      if name == 'leases' then item[#item] = '0' end
      if not string.match(name, '^open:') and not string.match(name, '^line:') and name ~= 'leases' then
        item[#item] = when(values[member])
      end
      if string.match(name, '^line:') then turns[#turns + 1] = {{ tonumber(values[member]), item, #item }} end
    end
  end
  if name ~= 'turn' then answer[#answer + 1] = item end
end
table.sort(turns, function(one, other) return one[1] < other[1] end)
for rank, turn in ipairs(turns) do turn[2][turn[3]] = tostring(rank) end
return cjson.encode(answer)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A run as a state of Redis has it; `claim` and `executor` only while it is leased."""

    session: str
    state: str
    claims: int
    claim: int | None
    executor: str | None
    waits: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """A state of Redis taken apart."""

    keys: dict[str, Any]
    runs: dict[str, Known]
    is_open: bool

    @property
    def leases(self) -> set[str]:
        """Return the leased runs."""
        return set(self.keys.get("leases", ()))


class ServerStates:
    """Stands where RunQueue expects its client; `at` is the number of the state it is in.

    Args:
        client: the real server.
        edit: makes a mutant: given a script's text with its includes resolved, returns what is run instead.
    """

    def __init__(
        self, client: redis.Redis, namespace: str, edit: Callable[[str, str], str] = lambda verb, text: text
    ) -> None:
        self._client = client
        self._keys = Keys(namespace)
        self._load, self._read = client.script_load(_LOAD), client.script_load(_READ)
        self._digests = {source(verb): client.script_load(edit(verb, source(verb))) for verb in verbs()}
        self._texts = [b"[]"]
        self._numbers = {b"[]": EMPTY}
        self._facts: dict[int, Facts] = {}
        self._known: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self.at = EMPTY
        self._meanwhile: tuple[tuple[str, ...], ...] = ()
        self.queue = RunQueue(cast(redis.Redis, self), self._keys)

    @property
    def calls(self) -> int:
        """How many distinct calls were made on the server."""
        return len(self._known)

    @property
    def count(self) -> int:
        """How many distinct states were seen."""
        return len(self._texts)

    def register_script(self, text: str) -> Callable[..., Any]:
        """Do what redis-py's client does, as far as RunQueue uses it."""
        digest = self._digests[text]

        def call(keys: Sequence[str], args: Sequence[Any]) -> Any:
            return self._run(digest, tuple(map(str, args)))

        return call

    def enter(self, number: int, *meanwhile: tuple[str, ...]) -> RunQueue:
        """Go to a state and return the queue to make one call of.

        Args:
            meanwhile: commands that make time pass before the call, without the root in their keys:
                ``("ZADD", "dispatched", "XX", "0", run_id)``.
        """
        self.at, self._meanwhile = number, meanwhile
        return self.queue

    def pass_time(self, number: int, *meanwhile: tuple[str, ...]) -> int:
        """Return the state in which only this has happened."""
        self.enter(number, *meanwhile)
        self._run(None, ())
        return self.at

    def facts(self, number: int) -> Facts:
        """Return a state taken apart."""
        if number not in self._facts:
            self._facts[number] = _facts(json.loads(self._texts[number]))
        return self._facts[number]

    def close(self) -> None:
        """Remove the namespace from the server."""
        self._client.execute_command("EVALSHA", self._load, 1, self._keys.root, "[]")

    def _run(self, digest: str | None, args: tuple[str, ...]) -> Any:
        call = (self.at, digest, args, self._meanwhile)
        if call not in self._known:
            self._known[call] = self._execute(digest, args)
        self.at, answer = self._known[call]
        self._meanwhile = ()
        return answer

    def _execute(self, digest: str | None, args: tuple[str, ...]) -> tuple[int, Any]:
        root = self._keys.root
        pipe = self._client.pipeline(transaction=False)
        pipe.execute_command("EVALSHA", self._load, 1, root, self._texts[self.at])
        for verb, key, *rest in self._meanwhile:
            pipe.execute_command(verb, root + key, *rest)
        if digest:
            pipe.execute_command("EVALSHA", digest, 1, root, *args)
        pipe.execute_command("EVALSHA", self._read, 1, root)
        *_, answer, text = pipe.execute()
        if text == b"{}":
            text = b"[]"
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        return number, answer


def _facts(items: list[list[str]]) -> Facts:
    keys: dict[str, Any] = {}
    for name, kind, *rest in items:
        if kind == "string":
            keys[name] = rest[0]
        elif kind == "set":
            keys[name] = set(rest)
        else:
            keys[name] = dict(zip(rest[::2], rest[1::2], strict=True))
    runs = {
        name.removeprefix("run:"): Known(
            session=fields.get("session", ""),
            state=fields.get("state", ""),
            claims=int(fields.get("claims", -1)),
            claim=int(fields["claim"]) if "claim" in fields else None,
            executor=fields.get("executor"),
            waits=fields.get("not_before", "0") != "0",
        )
        for name, fields in keys.items()
        if name.startswith("run:")
    }
    return Facts(keys, runs, "gate" in keys)
