"""The real scripts as a function from a state of Redis to the next: what the search explores with.

A state is a namespace's keys as text, made canonical: times are only due or not due, turns only an order,
beats and nonces nothing at all.  A call loads a state into the server, runs the script there, reads the
state back.  The arbiter remembers, so that each distinct call is made once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import redis

from asm_celery.keys import Keys
from asm_celery.queue.run_queue import RunQueue
from asm_celery.queue.scripts import source, verbs
from asm_celery.queue.wire import Wire

EMPTY: Final = 0
_LUA: Final = Path(__file__).with_name("lua")


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
        self._load = str(client.script_load((_LUA / "load_state.lua").read_text()))
        self._read = str(client.script_load((_LUA / "read_state.lua").read_text()))
        self._digests = {source(verb): str(client.script_load(edit(verb, source(verb)))) for verb in verbs()}
        self._texts = [b"[]"]
        self._numbers = {b"[]": EMPTY}
        self._facts: dict[int, Facts] = {}
        self.calls = 0
        self.at = EMPTY
        self._meanwhile: tuple[tuple[str, ...], ...] = ()
        self.queue = RunQueue(cast(redis.Redis, self), self._keys)
        self.queue._wire = cast(Wire, self)

    @property
    def count(self) -> int:
        """How many distinct states were seen."""
        return len(self._texts)

    connection_pool = None

    def register_script(self, text: str) -> SimpleNamespace:
        """Do what redis-py's client does, as far as RunQueue uses it."""
        return SimpleNamespace(sha=self._digests[text])

    def ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Do what a `Wire` does."""
        [(_, digest, _, _, *args)] = commands
        return [self._run(digest, tuple(map(str, args)))]

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
        self._client.evalsha(self._load, 1, self._keys.root, "[]")

    def _run(self, digest: str | None, args: tuple[str, ...]) -> Any:
        self.calls += 1
        root = self._keys.root
        pipe = self._client.pipeline(transaction=False)
        pipe.evalsha(self._load, 1, root, self._texts[self.at])
        for verb, key, *rest in self._meanwhile:
            pipe.execute_command(verb, root + key, *rest)  # type: ignore[no-untyped-call]
        if digest:
            pipe.evalsha(digest, 1, root, *args)
        pipe.evalsha(self._read, 1, root)
        *_, answer, text = pipe.execute()
        if text == b"{}":
            text = b"[]"
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
        self.at, self._meanwhile = number, ()
        return answer


def look(client: redis.Redis, namespace: str) -> tuple[bytes, Facts]:
    """Return a namespace's state as it is now: as canonical text, and taken apart."""
    text = client.eval((_LUA / "read_state.lua").read_text(), 1, Keys(namespace).root)
    assert isinstance(text, bytes)
    return text, _facts(json.loads(text))


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
