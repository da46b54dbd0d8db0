"""Ask the real scripts in the words of the model, and hold their answers against what they promise."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase
from typing import NamedTuple

from asm_celery.queue.run_queue import Entry, Granted, Held, Line, RunQueue
from tests.model.consistency import idleness, inconsistency, over_capacity
from tests.model.server_states import EMPTY, Facts, ServerStates
from tests.model.spec import Spec

QUEUE = "q"
_LONG_S = 1e9
_Meanwhile = tuple[tuple[str, ...], ...]


class Told(NamedTuple):
    """What SQL said of a run when it was read; `line` is its session's state and version."""

    run: int
    status: str
    claims: int
    executor: str
    waits: bool
    line: tuple[str, int]


class Answer(NamedTuple):
    """The state after a call, the doorbells of what it granted, its word, and the promise it broke."""

    redis: int
    granted: frozenset[tuple[int, int]]
    word: str = ""
    broken: str = ""


class Arbiter:
    """The scripts of one configuration; every distinct call is made once."""

    def __init__(self, spec: Spec, states: ServerStates) -> None:
        self._spec = spec
        self._states = states
        self._sessions = [session for session, _ in spec.runs()]
        self._positions = [position for _, position in spec.runs()]
        self.names = spec.names()
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._answers: dict[tuple[object, ...], Answer] = {}
        self._complaints: dict[int, str] = {}

    def start(self) -> int:
        """Return the state with an open gate, the limits, and every executor announced."""
        redis = self.begin_restore(self.limits(EMPTY), "o0").redis
        for number in range(self._spec.executors):
            redis = self.announce(redis, f"e{number}").redis
        return self.open_gate(redis, "o0").redis

    def facts(self, redis: int) -> Facts:
        """Return a state taken apart."""
        return self._states.facts(redis)

    def run_of(self, name: str) -> int:
        """Return a run's number."""
        return self._numbers[name]

    def session(self, redis: int, session: int) -> tuple[str, int] | None:
        """Return the state and version that Redis has of a session, None when it does not know it."""
        about = self.facts(redis).keys.get(f"session:{ascii_lowercase[session]}")
        return None if about is None else (about["state"], int(about["version"]))

    def complaint(self, redis: int) -> str:
        """Return what is inconsistent in a state of Redis; '' if nothing is."""
        if redis not in self._complaints:
            self._complaints[redis] = inconsistency(self.facts(redis))
        return self._complaints[redis]

    def enqueue(self, redis: int, told: tuple[Told, ...]) -> Answer:
        """Record runs, session by session as the restore does."""
        granted: frozenset[tuple[int, int]] = frozenset()
        broken = ""
        for session in sorted({self._sessions[one.run] for one in told}):
            part = tuple(one for one in told if self._sessions[one.run] == session)
            line, entries = self._line(part[0]), [self._entry(one) for one in part]
            answer = self._ask(("enqueue", redis, part), lambda queue: queue.enqueue(line, entries))  # noqa: B023
            redis, granted, broken = answer.redis, granted | answer.granted, broken or answer.broken
        return Answer(redis, granted, broken=broken)

    def begin(self, redis: int, run: int, claim: int, executor: str) -> Answer:
        """Answer a doorbell; the word is begun or spare."""
        return self._ask(
            ("begin", redis, run, claim, executor),
            lambda queue: "begun" if queue.begin(self.names[run], claim, executor, "nonce") else "spare",
        )

    def give_back(self, redis: int, run: int, claim: int, executor: str, told: tuple[Told, ...]) -> Answer:
        """Return a lease with what SQL said."""
        line, entries, name = self._line(told[0]), [self._entry(one) for one in told], self.names[run]
        return self._ask(
            ("give_back", redis, run, claim, executor, told),
            lambda queue: queue.give_back(name, claim, executor, line, entries, verdict="keep"),
        )

    def finish(self, redis: int, run: int) -> Answer:
        """Forget a terminal run."""
        return self._ask(("finish", redis, run), lambda queue: queue.finish(self.names[run]))

    def renew(self, redis: int, run: int, claim: int, executor: str) -> str:
        """Return the word of one beat: held, taken or unknown."""
        name = self.names[run]
        return self._ask(
            ("renew", redis, run, claim, executor), lambda queue: queue.renew(executor, {name: claim})[name]
        ).word

    def take_over(self, redis: int, run: int, claim: int, executor: str, observer: str) -> Answer:
        """Take a lease over; the word is taken or kept."""
        seen = Held(
            run_id=self.names[run],
            session_id=self._session(run),
            claim=claim,
            executor=executor,
            beat=0,
        )
        return self._ask(
            ("take_over", redis, seen.run_id, claim, executor, observer),
            lambda queue: "taken" if queue.take_over(seen, observer) else "kept",
        )

    def session_state(self, redis: int, session: int, state: str, version: int) -> Answer:
        """Tell a session's state."""
        return self._ask(
            ("session_state", redis, session, state, version),
            lambda queue: queue.session_state(ascii_lowercase[session], state, version),
        )

    def ring(self, redis: int, *, run: int | None = None) -> Answer:
        """Ring, after the time of one run's doorbell or back-off has come."""
        meanwhile: _Meanwhile = ()
        if run is not None:
            name = self.names[run]
            if self.facts(redis).runs[name].state == "dispatched":
                meanwhile = (("ZADD", "dispatched", "XX", "0", name),)
            else:
                meanwhile = (
                    ("HSET", f"run:{name}", "not_before", "1"),
                    ("ZADD", "delayed", "XX", "0", self._session(run)),
                )

        def call(queue: RunQueue) -> Granted:
            rung = queue.ring()
            return Granted(word="", leases=[*rung.repeated, *rung.granted])

        return self._ask(("ring", redis, run), call, meanwhile)

    def announce(self, redis: int, executor: str) -> Answer:
        """Announce an executor's room."""
        return self._ask(
            ("announce", redis, executor),
            lambda queue: queue.announce(
                executor, f"w-{executor}", self._spec.room, [QUEUE], hold_s=_LONG_S, ring_s=_LONG_S
            ),
        )

    def fall_silent(self, redis: int) -> int:
        """Let the time of every announcement end."""
        keys = self.facts(redis).keys
        return self._states.pass_time(
            redis,
            *(("ZADD", f"workers:{QUEUE}", "XX", "0", name) for name in keys.get(f"workers:{QUEUE}", {})),
            *(
                ("HSET", "capacity", QUEUE, f"{text.rsplit(' ', 1)[0]} 0")
                for text in keys.get("capacity", {}).values()
            ),
        )

    def limits(self, redis: int) -> int:
        """Write the limits."""
        return self._ask(
            ("limits", redis), lambda queue: queue.limiter_set(self._spec.limit, self._spec.max_sessions)
        ).redis

    def begin_restore(self, redis: int, restorer: str) -> Answer:
        """Ask for the right to restore; the word is open, mine or busy."""
        return self._ask(
            ("begin_restore", redis, restorer), lambda queue: queue.begin_restore(restorer, hold_s=_LONG_S)
        )

    def open_gate(self, redis: int, restorer: str) -> Answer:
        """Open the gate; the word is open or lost."""
        return self._ask(("open_gate", redis, restorer), lambda queue: queue.open_gate(restorer))

    def _ask(
        self,
        key: tuple[object, ...],
        call: Callable[[RunQueue], Granted | str],
        meanwhile: _Meanwhile = (),
    ) -> Answer:
        if key not in self._answers:
            redis = key[1]
            assert isinstance(redis, int)
            said = call(self._states.enter(redis, *meanwhile))
            if isinstance(said, str):
                self._answers[key] = Answer(self._states.at, frozenset(), said)
            else:
                granted = frozenset((self._numbers[one.run_id], one.claim) for one in said.leases)
                after = self.facts(self._states.at)
                broken = idleness(after) or (over_capacity(after) if granted else "")
                self._answers[key] = Answer(self._states.at, granted, said.word, broken)
        return self._answers[key]

    def _session(self, run: int) -> str:
        return ascii_lowercase[self._sessions[run]]

    def _line(self, told: Told) -> Line:
        state, version = told.line
        slots = self._spec.sessions[self._sessions[told.run]][0]
        return Line(session_id=self._session(told.run), slots=slots, state=state, version=version)

    def _entry(self, told: Told) -> Entry:
        return Entry(
            run_id=self.names[told.run],
            agent="agent",
            position=self._positions[told.run],
            queue=QUEUE,
            status=told.status,
            claims=told.claims,
            executor=told.executor,
            waits_ms=10**12 if told.waits else 0,
        )
