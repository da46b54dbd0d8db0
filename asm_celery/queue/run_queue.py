"""One typed method a script: what Redis arbitrates about sessions, runs and leases.

Each call is one round trip and atomic.  The methods that free or admit return the leases they granted, which
the calling move dispatches.  Errors of the server arrive as CoordinationUnavailable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from asm_celery.model import Lease
from asm_celery.queue.caller import (
    Entry,
    Granted,
    Line,
    Message,
    flat_entries,
    flat_line,
    lease_of,
    number_of,
    text_of,
)
from asm_celery.queue.connection import reaching
from asm_celery.queue.upkeep import Upkeep

__all__ = ["Entry", "Granted", "Held", "Line", "RunQueue", "Rung"]


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


class RunQueue(Upkeep):
    """The scripts of one namespace.

    Those that follow a commit take along what is to be published of it (`telling`), in the same round trip.
    """

    def enqueue(self, line: Line, entries: Iterable[Entry], *, telling: Sequence[Message] = ()) -> Granted:
        """Record a session's open runs as SQL has them (idempotent), then promote."""
        return self._granted("enqueue", *flat_line(line), *flat_entries(entries), telling=telling)

    def begin(self, run_id: str, claim: int, executor: str, nonce: str) -> str | None:
        """Begin the lease dispatched under this claim and return its agent; None: a spare doorbell, drop it.

        The agent is empty where Redis has lost it; SQL knows it.
        """
        word, *agent = self._call("begin", run_id, claim, executor, nonce)
        return None if word == b"spare" else text_of((agent and agent[0]) or b"")

    def give_back(
        self, run_id: str, claim: int, executor: str, line: Line, entries: Iterable[Entry], *, verdict: str
    ) -> Granted:
        """Return a begun lease and record what SQL says; `verdict` is keep or lacking."""
        return self._granted(
            "give_back", run_id, claim, executor, verdict, *flat_line(line), *flat_entries(entries)
        )

    def finish(self, run_id: str, *, telling: Sequence[Message] = ()) -> Granted:
        """Forget a terminal run, free what it held, promote; the word says what it was here."""
        return self._granted("finish", run_id, telling=telling)

    def renew(self, executor: str, held: Mapping[str, int]) -> dict[str, str]:
        """Raise the beats of these leases; returns held, taken or unknown for each run."""
        if not held:
            return {}
        pairs = [part for run_id, claim in held.items() for part in (run_id, claim)]
        return dict(zip(held, map(text_of, self._call("renew", executor, *pairs)), strict=True))

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
            total = number_of(answer[0])
            found += [
                Held(
                    run_id=text_of(run),
                    session_id=text_of(session),
                    claim=number_of(claim),
                    executor=text_of(executor),
                    beat=number_of(beat),
                )
                for run, session, claim, executor, beat in answer[1:]
            ]
            first += page
        return found

    def ring(self) -> Rung:
        """Find doorbells nobody answered, give back the leases of dead queues, promote."""
        answer = self._call("ring")
        leases = [lease_of(item) for item in answer[2:]]
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

    def hold(self, is_held: bool, version: int) -> Granted:
        """Hold the installation or release it (the higher version stays), then promote.

        The word is how it is now: open, held, or more: held, with more leases to be given back.
        """
        return self._granted("hold", "held" if is_held else "open", version)

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
        return number_of(self._call("subscribers", session_id, "", 0, 0)[0])

    def limiter_acquire(self, kind: str, slot: str, *, hold_s: float, session_id: str = "") -> list[str]:
        """Take a caller's slot; returns [acquired, again or full; limit; active]."""
        answer = self._call("limiter_acquire", kind, slot, round(hold_s * 1000), session_id)
        return [text_of(part) for part in answer]

    def limiter_renew(self, slots: Collection[tuple[str, str]], *, hold_s: float) -> list[str]:
        """Extend callers' slots given as (kind, id); returns held or ended for each."""
        flat = [part for slot in slots for part in slot]
        return [text_of(word) for word in self._call("limiter_renew", round(hold_s * 1000), *flat)]

    def limiter_release(self, kind: str, slot: str) -> Granted:
        """Give a caller's slot back, then promote; the word is released or absent."""
        return self._granted("limiter_release", kind, slot)

    def limiter_status(self) -> tuple[int, int | None, int, int | None]:
        """Return active runs, limit of runs, active sessions, limit of sessions; None: no limit."""
        runs, max_runs, sessions, max_sessions = self._call("limiter_status")
        return (
            number_of(runs),
            number_of(max_runs) if max_runs else None,
            number_of(sessions),
            number_of(max_sessions) if max_sessions else None,
        )

    def limiter_set(self, max_runs: int | None, max_sessions: int | None) -> Granted:
        """Set the limits (None: none), then promote."""
        return self._granted(
            "limiter_set",
            "" if max_runs is None else max_runs,
            "" if max_sessions is None else max_sessions,
        )
