"""One typed method a script: what Redis arbitrates about sessions, runs and leases.

Each call is one round trip and atomic.  The methods that free or admit return the leases they granted, which
the calling move dispatches.  Errors of the server arrive as CoordinationUnavailable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from asm_celery.keys import Keys
from asm_celery.model import Bell, Lease
from asm_celery.queue.connection import check_version, reaching
from asm_celery.queue.scripts import source, verbs


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What ringing found: doorbells to repeat, new leases, and ms until something is due."""

    repeated: list[Lease]
    granted: list[Lease]
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A begun lease as an observer sees it."""

    run_id: str
    session_id: str
    claim: int
    executor: str
    beat: int


class RunQueue:
    """The scripts of one namespace.

    Args:
        bell: what the scripts push for each lease they grant; None: the caller sends a doorbell for each.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, url: str = "", bell: Bell | None = None) -> None:
        self._client = client
        self._root = keys.root
        self._url = url
        self._scripts = {verb: client.register_script(source(verb, bell)) for verb in verbs()}
        self._supported = False

    def check_server(self) -> None:
        """Raise DependencyNotAvailable when the server is too old; asks it once.

        Raises:
            CoordinationUnavailable: the server cannot be reached, so nothing is known of it.
        """
        if not self._supported:
            with reaching(self._url):
                check_version(self._client)
            self._supported = True

    def enqueue(self, line: Line, entries: Iterable[Entry]) -> Granted:
        """Record a session's open runs as SQL has them (idempotent), then promote."""
        return self._granted("enqueue", *_line(line), *_flat(entries))

    def begin(self, run_id: str, claim: int, executor: str, nonce: str) -> bool:
        """Begin the lease dispatched under this claim; False: a spare doorbell, drop it."""
        return bool(self._call("begin", run_id, claim, executor, nonce)[0] != b"spare")

    def give_back(
        self, run_id: str, claim: int, executor: str, line: Line, entries: Iterable[Entry], *, verdict: str
    ) -> Granted:
        """Return a begun lease and record what SQL says; `verdict` is keep or lacking."""
        return self._granted("give_back", run_id, claim, executor, verdict, *_line(line), *_flat(entries))

    def finish(self, run_id: str) -> Granted:
        """Forget a terminal run, free what it held, promote; the word says what it was here."""
        return self._granted("finish", run_id)

    def renew(self, executor: str, held: Mapping[str, int]) -> dict[str, str]:
        """Raise the beats of these leases; returns held, taken or unknown for each run."""
        if not held:
            return {}
        pairs = [part for run_id, claim in held.items() for part in (run_id, claim)]
        return dict(zip(held, map(_text, self._call("renew", executor, *pairs)), strict=True))

    def take_over(self, seen: Held, observer: str) -> bool:
        """Make a silent lease the observer's, if nothing about it has changed."""
        answer = self._call("take_over", seen.run_id, seen.claim, seen.executor, seen.beat, observer)
        return bool(answer[0] == b"taken")

    def observe(self, *, page: int = 500) -> list[Held]:
        """Return all begun leases with their beats, in pages of one round trip each."""
        found: list[Held] = []
        first, total = 0, 1
        while first < total:
            answer = self._call("observe", first, page)
            total = int(answer[0])
            found += [
                Held(
                    run_id=_text(run),
                    session_id=_text(session),
                    claim=int(claim),
                    executor=_text(executor),
                    beat=int(beat),
                )
                for run, session, claim, executor, beat in answer[1:]
            ]
            first += page
        return found

    def ring(self) -> Rung:
        """Find doorbells nobody answered, give back the leases of dead queues, promote."""
        answer = self._call("ring")
        leases = [_lease(item) for item in answer[2:]]
        repeated = int(answer[1])
        return Rung(repeated=leases[:repeated], granted=leases[repeated:], due_ms=int(answer[0]))

    def session_state(self, session_id: str, state: str, version: int) -> Granted:
        """Tell Redis of a session's state (the higher version stays), then promote."""
        return self._granted("session_state", session_id, state, version)

    def announce(
        self, executor: str, worker: str, slots: int, queues: Sequence[str], *, hold_s: float, ring_s: float
    ) -> Granted:
        """Announce an executor's slots for `hold_s` seconds (0 slots: none any more), then promote."""
        return self._granted(
            "announce", executor, worker, slots, round(hold_s * 1000), round(ring_s * 1000), *queues
        )

    def retire(self, worker: str) -> None:
        """Say that a worker takes no more runs."""
        self._call("retire", worker)

    def begin_restore(self, restorer: str, *, hold_s: float) -> str:
        """Ask for the right to restore; returns open, mine or busy."""
        return _text(self._call("begin_restore", restorer, round(hold_s * 1000))[0])

    def open_gate(self, restorer: str) -> Granted:
        """Open the gate after a restore, then promote; the word is open or lost."""
        return self._granted("open_gate", restorer)

    def hold(self, is_held: bool, version: int) -> Granted:
        """Hold the installation or release it (the higher version stays), then promote.

        The word is how it is now: open, held, or more: held, with more leases to be given back.
        """
        return self._granted("hold", "held" if is_held else "open", version)

    def may_compare(self, *, hold_s: float) -> bool:
        """Take the turn at comparing SQL with Redis; False: another process did within `hold_s` seconds.

        It only spares work: a comparison made twice does no harm.
        """
        with reaching(self._url):
            return bool(self._client.set(f"{self._root}comparing", 1, nx=True, px=round(hold_s * 1000)))

    def known(self) -> set[str]:
        """Return the ids of all runs Redis knows; reads in pieces, so it is not one moment's picture."""
        with reaching(self._url):
            return {_text(run_id) for run_id in self._client.sscan_iter(f"{self._root}known", count=1000)}

    def count_subscribers(self, process: str, counts: Mapping[str, int], *, hold_s: float) -> None:
        """Say how many subscribers this process has of each session (0: none any more).

        One round trip for all of them, in which each session is a script of its own.
        """
        with reaching(self._url), self._client.pipeline(transaction=False) as pipeline:
            for session_id, count in counts.items():
                arguments = (session_id, process, count, round(hold_s * 1000))
                self._scripts["subscribers"](keys=[self._root], args=arguments, client=pipeline)
            pipeline.execute()

    def subscribers(self, session_id: str) -> int:
        """Return how many subscribers all processes together have of a session."""
        return int(self._call("subscribers", session_id, "", 0, 0)[0])

    def limiter_acquire(self, kind: str, slot: str, *, hold_s: float, session_id: str = "") -> list[str]:
        """Take a caller's slot; returns [acquired, again or full; limit; active]."""
        answer = self._call("limiter_acquire", kind, slot, round(hold_s * 1000), session_id)
        return [_text(part) for part in answer]

    def limiter_renew(self, slots: Collection[tuple[str, str]], *, hold_s: float) -> list[str]:
        """Extend callers' slots given as (kind, id); returns held or ended for each."""
        flat = [part for slot in slots for part in slot]
        return [_text(word) for word in self._call("limiter_renew", round(hold_s * 1000), *flat)]

    def limiter_release(self, kind: str, slot: str) -> Granted:
        """Give a caller's slot back, then promote; the word is released or absent."""
        return self._granted("limiter_release", kind, slot)

    def limiter_status(self) -> tuple[int, int | None, int, int | None]:
        """Return active runs, limit of runs, active sessions, limit of sessions; None: no limit."""
        runs, max_runs, sessions, max_sessions = self._call("limiter_status")
        return (
            int(runs),
            int(max_runs) if max_runs else None,
            int(sessions),
            int(max_sessions) if max_sessions else None,
        )

    def limiter_set(self, max_runs: int | None, max_sessions: int | None) -> Granted:
        """Set the limits (None: none), then promote."""
        return self._granted(
            "limiter_set",
            "" if max_runs is None else max_runs,
            "" if max_sessions is None else max_sessions,
        )

    def _granted(self, verb: str, *arguments: Any) -> Granted:
        answer = self._call(verb, *arguments)
        return Granted(word=_text(answer[0]), leases=[_lease(item) for item in answer[1:]])

    def _call(self, verb: str, *arguments: Any) -> Any:
        with reaching(self._url):
            return self._scripts[verb](keys=[self._root], args=arguments)


def _line(line: Line) -> tuple[Any, ...]:
    return line.session_id, line.slots, line.state, line.version


def _flat(entries: Iterable[Entry]) -> list[Any]:
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


def _lease(item: Sequence[bytes]) -> Lease:
    run_id, session_id, agent, claim, queue = map(_text, item)
    return Lease(run_id=run_id, session_id=session_id, agent=agent, claim=int(claim), queue=queue)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
