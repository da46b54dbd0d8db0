"""What RunQueue promises, as plain Python: one list of ready sessions, longest ready first.

No lines, no turns, no sets of leases: who is next is looked up among all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BOUND = 32


@dataclass(slots=True)
class ReferenceRun:
    """A run as Redis should know it."""

    run_id: str
    session_id: str
    position: int
    queue: str
    claims: int
    state: str = "waiting"
    claim: int = 0
    executor: str = ""
    is_due: bool = True
    grant: int = 0

    @property
    def is_leased(self) -> bool:
        """Return whether someone may begin it, or has."""
        return self.state != "waiting"


@dataclass(slots=True)
class ReferenceSession:
    """A session as Redis should know it."""

    slots: int
    state: str
    version: int


@dataclass(frozen=True, slots=True)
class Saying:
    """What SQL said of a run at some time."""

    run_id: str
    session_id: str
    position: int
    queue: str
    status: str
    claims: int
    executor: str = ""
    waits: bool = False


Grant = tuple[str, int]


@dataclass(slots=True)
class Reference:
    """The state of a namespace."""

    max_runs: int | None = None
    max_sessions: int | None = None
    sessions: dict[str, ReferenceSession] = field(default_factory=dict)
    runs: dict[str, ReferenceRun] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)
    workers: dict[str, tuple[str, int, tuple[str, ...]]] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    callers: set[str] = field(default_factory=set)
    calling_sessions: set[str] = field(default_factory=set)
    grants: int = 0
    is_held: bool = False

    def open_of(self, session_id: str) -> list[ReferenceRun]:
        """Return a session's known runs by position."""
        runs = [run for run in self.runs.values() if run.session_id == session_id]
        return sorted(runs, key=lambda run: run.position)

    def first_ready(self, session_id: str) -> ReferenceRun | None:
        """Return the run that a session would start next."""
        about = self.sessions.get(session_id)
        if about is None or about.state == "paused":
            return None
        first = self.open_of(session_id)[: about.slots]
        return next((run for run in first if not run.is_leased and run.is_due), None)

    def leased(self, session_id: str = "", queue: str = "") -> list[ReferenceRun]:
        """Return the leases, of a session or of a queue."""
        return [
            run
            for run in self.runs.values()
            if run.is_leased and session_id in ("", run.session_id) and queue in ("", run.queue)
        ]

    def active_runs(self) -> int:
        """Return how many slots of the semaphore are taken."""
        return len(self.leased()) + len(self.callers)

    def active_sessions(self) -> int:
        """Return how many sessions have work in flight."""
        return len({run.session_id for run in self.leased()}) + len(self.calling_sessions)

    def is_full(self) -> bool:
        """Return whether no run may be leased."""
        return self.max_runs is not None and self.active_runs() >= self.max_runs

    def is_full_of_sessions(self) -> bool:
        """Return whether no session may begin work."""
        return self.max_sessions is not None and self.active_sessions() >= self.max_sessions

    def room(self, queue: str) -> tuple[int, int]:
        """Return the slots of a queue's workers, and their spare doorbells."""
        mine = [
            (worker, slots)
            for worker, slots, queues in self.workers.values()
            if queue in queues and worker not in self.retired
        ]
        return sum(slots for _, slots in mine), len({worker for worker, slots in mine if slots})

    def touch(self, session_id: str, *, to_back: bool = False) -> None:
        """Let a session take its place after something about it has changed."""
        if not self.open_of(session_id):
            self.sessions.pop(session_id, None)
        is_ready = self.first_ready(session_id) is not None
        if session_id in self.ready and (to_back or not is_ready):
            self.ready.remove(session_id)
        if is_ready and session_id not in self.ready:
            self.ready.append(session_id)

    def promote(self) -> list[Grant]:
        """Grant what can be granted, and return it in order."""
        granted: list[Grant] = []
        while len(granted) < BOUND and not self.is_full() and not self.is_held:
            chosen = min(
                (rank, place, session_id)
                for place, session_id in [*enumerate(self.ready), (len(self.ready), "")]
                for rank in [self._rank(session_id)]
            )
            run = self.first_ready(chosen[2]) if chosen[0] < 3 else None
            if run is None:
                break
            self.grants += 1
            run.state, run.claim, run.grant = "dispatched", run.claims + 1, self.grants
            granted.append((run.run_id, run.claim))
            self.touch(run.session_id, to_back=True)
        return granted

    def _rank(self, session_id: str) -> int:
        """Return 1 where a worker is free, 2 where one could hold the doorbell, 3 where none can."""
        run = self.first_ready(session_id) if session_id else None
        if run is None or (not self.leased(session_id) and self.is_full_of_sessions()):
            return 3
        slots, spare = self.room(run.queue)
        load = len(self.leased(queue=run.queue))
        return 1 if load < slots else 2 if load < slots + spare else 3

    def drop(self, run: ReferenceRun) -> None:
        """End a lease."""
        run.state, run.claim, run.executor = "waiting", 0, ""

    def hold(self) -> None:
        """Start nothing any more: what nobody has begun waits again, oldest first."""
        self.is_held = True
        for run in sorted(self.leased(), key=lambda run: run.run_id):
            if run.state == "dispatched":
                self.drop(run)
                self.touch(run.session_id)

    def forget(self, run: ReferenceRun) -> None:
        """Forget a run."""
        del self.runs[run.run_id]
        self.touch(run.session_id)

    def conform(self, about: ReferenceSession, session_id: str, said: list[Saying], *, revives: bool) -> None:
        """Take in what SQL said at some time: what is known under a higher claim number is newer."""
        known = self.sessions.get(session_id)
        if known is None or about.version >= known.version:
            self.sessions[session_id] = ReferenceSession(about.slots, about.state, about.version)
        for saying in said:
            self._hear(saying, revives=revives)
        self.touch(session_id)

    def _hear(self, saying: Saying, *, revives: bool) -> None:
        run = self.runs.get(saying.run_id)
        is_new = run is None
        if run is None:
            if saying.status == "running" and not revives:
                return
            run = ReferenceRun(saying.run_id, saying.session_id, saying.position, saying.queue, saying.claims)
            self.runs[run.run_id] = run
        newest = max(run.claims, run.claim)
        if saying.status == "running":
            is_later = is_new or newest < saying.claims
            if is_later or (run.state == "dispatched" and newest == saying.claims):
                self.grants += 1
                run.state, run.claim, run.executor = "begun", saying.claims, saying.executor
                run.claims, run.queue, run.grant = saying.claims - 1, saying.queue, self.grants
        elif not run.is_leased or run.claim <= saying.claims:
            self.drop(run)
            if saying.claims >= run.claims:
                if is_new or saying.claims > run.claims or saying.waits:
                    run.is_due = not saying.waits
                run.claims, run.queue = saying.claims, saying.queue

    def ring(self, due: ReferenceRun | None) -> tuple[list[Grant], list[Grant]]:
        """Ring when the time of this lease's doorbell has come: what is rung again, what is granted."""
        again: list[Grant] = []
        if due is not None and due.state == "dispatched":
            if self._is_in_the_way(due):
                self.drop(due)
                self.touch(due.session_id, to_back=True)
            else:
                again.append((due.run_id, due.claim))
        return again, self.promote()

    def _is_in_the_way(self, run: ReferenceRun) -> bool:
        slots, spare = self.room(run.queue)
        if slots + spare == 0:
            return True
        if len(self.leased(queue=run.queue)) <= slots or not (self.is_full() or self.is_full_of_sessions()):
            return False
        begins_one = not self.is_full_of_sessions() or len(self.leased(run.session_id)) == 1
        for session_id in self.ready:
            other = self.first_ready(session_id)
            assert other is not None
            is_free = len(self.leased(queue=other.queue)) < self.room(other.queue)[0]
            if is_free and other.queue != run.queue and (begins_one or self.leased(session_id)):
                return True
        return False
