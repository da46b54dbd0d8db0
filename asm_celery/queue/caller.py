"""Call the scripts of one namespace; the records they take and give, and how these are read.

What a script gives back was in Redis, where anybody may have written: it is checked as it is read, and what
is not ours raises CoordinationDamaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import NoScriptError

from asm_celery.keys import Keys
from asm_celery.model import Bell, Lease
from asm_celery.queue.connection import damaged, reaching
from asm_celery.queue.scripts import source, verbs
from asm_celery.queue.wire import Wire

# a channel and what is published there
Message = tuple[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A session as Redis needs to know it."""

    session_id: str
    slots: int
    state: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An open run as Redis needs to know it; `waits_ms` is what is left of its back-off."""

    run_id: str
    agent: str
    position: int
    queue: str
    status: str
    claims: int
    executor: str | None = None
    waits_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What a script answered, and the leases it granted on the way."""

    word: str
    leases: list[Lease]


class Caller:
    """The scripts of one namespace on one client.

    Args:
        bell: what the scripts push for each lease they grant; None: the caller sends a doorbell for each.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, url: str = "", bell: Bell | None = None) -> None:
        self._client = client
        self._wire = Wire(client)
        self._root = keys.root
        self._url = url
        self._scripts = {verb: client.register_script(source(verb, bell)) for verb in verbs()}

    def _granted(self, verb: str, *arguments: Any, telling: Sequence[Message] = ()) -> Granted:
        answer = self._call(verb, *arguments, telling=telling)
        return Granted(word=text_of(answer[0]), leases=[lease_of(item) for item in answer[1:]])

    def _call(self, verb: str, *arguments: Any, telling: Sequence[Message] = ()) -> Any:
        script, given = self._scripts[verb], [named(one) for one in arguments]
        told = [("PUBLISH", channel, message) for channel, message in telling]
        with reaching(self._url):
            answer = self._wire.ask(*told, ("EVALSHA", script.sha, 1, self._root, *given))[-1]
            if isinstance(answer, NoScriptError):
                # the server has just started; what was to be published is, by now
                return script(keys=[self._root], args=given)
            if isinstance(answer, Exception):
                raise answer
            return answer


def loose(value: bytes | str) -> str:
    """Read whatever anybody wrote, so that it can be named, and removed."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def named(value: Any) -> Any:
    """Return what `loose` read as Redis has it; anything else as it is."""
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="surrogateescape")
    return value


def flat_line(line: Line) -> tuple[Any, ...]:
    """Return a session as scripts take it."""
    return line.session_id, line.slots, line.state, line.version


def flat_entries(entries: Iterable[Entry]) -> list[Any]:
    """Return runs as scripts take them."""
    return [
        part
        for entry in entries
        for part in (
            entry.run_id,
            entry.agent,
            entry.position,
            entry.queue,
            entry.status,
            entry.claims,
            entry.executor or "",
            entry.waits_ms,
        )
    ]


def lease_of(item: Sequence[bytes]) -> Lease:
    """Read a lease that a script granted."""
    run_id, session_id, agent, claim, queue = item
    return Lease(
        run_id=text_of(run_id),
        session_id=text_of(session_id),
        agent=text_of(agent),
        claim=number_of(claim),
        queue=text_of(queue),
    )


def text_of(value: bytes | str | None) -> str:
    """Read a word that we may have written: ids and names are printable ASCII, or the agent's name."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        text = None
    if text is None or not text.isprintable():
        raise damaged(repr(value))
    return text


def number_of(value: bytes | str | None) -> int:
    """Read a number that fits our columns."""
    text = text_of(value)
    if not text.removeprefix("-").isdecimal() or len(text) > 18:
        raise damaged(repr(value))
    return int(text)
