"""Keep the promises when something died: beats, judgement of silence, the repair pass.

Every action is a compare-and-set, so any number of workers may run this at once.  Silence is timed by the
observer's own monotonic clock; times of two machines are never compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from asm_celery.agent import AgentRegistry
from asm_celery.codec import encode
from asm_celery.config import Config
from asm_celery.errors import CoordinationDamaged, CoordinationUnavailable, StorageConnectionFailed
from asm_celery.events.log import EventLog
from asm_celery.model import new_id
from asm_celery.moves.comparison import Comparison
from asm_celery.moves.coordinator import Coordinator
from asm_celery.moves.promotion import Promoter
from asm_celery.moves.restore import Restore
from asm_celery.moves.silence import Silence
from asm_celery.moves.stopping import Stopper
from asm_celery.queue.run_queue import Held
from asm_celery.showing import one_line
from asm_celery.states import RunStatus, StopKind
from asm_celery.store.run_queries import HeldRun, OverdueRun
from asm_celery.store.sessions import AgentTerms

log = logging.getLogger(__name__)

# Rows of executors that ended without a word say who was here; a day is enough for that.
_FORGET_S: Final = 86_400.0
# What is asked of SQL in one statement: after an outage of Redis all leases are silent at once.
_PAGE: Final = 500
_OVERDUE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a beat tells its executor: attempts to stop, attempts that are no longer its own, and pauses.

    Attributes:
        pauses: for each run that was ever paused: whether it is, and the version of that.
    """

    stops: dict[str, StopKind] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    pauses: dict[str, tuple[bool, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What Redis answered an executor: runs that another has taken over, and runs it does not know."""

    taken: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


class Recovery:
    """One process's part in keeping every run alive or decided."""

    def __init__(
        self,
        config: Config,
        registry: AgentRegistry,
        log: EventLog,
        promoter: Promoter,
        coordinator: Coordinator,
        stopper: Stopper,
    ) -> None:
        self._config = config
        self._registry = registry
        self._log = log
        self._promoter = promoter
        self._coordinator = coordinator
        self._stopper = stopper
        self._restore = Restore(config, log, promoter)
        self._comparison = Comparison(log, promoter, self._restore)
        self._silence = Silence(lease_s=config.lease_s, look_s=config.repair_s)
        self._observer = new_id("obs")
        self._orphans: set[str] = set()
        self._passed_over: set[str] = set()
        self._is_enrolled = False

    def beat(self, executor: str, held: dict[str, int], *, worker: str = "") -> Beat:
        """Raise an executor's beat in SQL, once for all it holds, and learn what became of that.

        One transaction of two statements; nothing here waits for Redis, whose beats are `renew`: one of
        the two witnesses away, or hanging, must not silence the other.

        Args:
            held: the runs it executes, with the claim number of each.
        """
        with self._log.transaction(is_beat=True) as tx:
            tx.executors.beat(executor, worker)
            running = {run.run_id: run for run in tx.runs.held_by(executor)}
        mine = [run_id for run_id, claim in held.items() if _owns(running, run_id, claim)]
        self._end_orphans(running.keys() - held.keys())
        stops = {run_id: stop for run_id in mine if (stop := running[run_id].stop) is not None}
        pauses = {
            run_id: (running[run_id].is_paused, running[run_id].pause_version)
            for run_id in mine
            if running[run_id].pause_version
        }
        return Beat(stops=stops, lost=set(held) - set(mine), pauses=pauses)

    def renew(self, executor: str, held: dict[str, int]) -> Renewal:
        """Raise in Redis the beats of the runs an executor has claimed; one script."""
        words = self._promoter.queue.renew(executor, held)
        taken, unknown = ({run for run, said in words.items() if said == one} for one in ("taken", "unknown"))
        return Renewal(taken=taken, unknown=unknown)

    def record(self, run_ids: set[str]) -> None:
        """Record anew in Redis what it does not know, as after it was emptied; one read, a script a session."""
        if not run_ids:
            return
        with self._log.store.read() as tx:
            lost = tx.runs.open_page(run_ids=sorted(run_ids))
        self._restore.write(lost)

    def announce(self, executor: str, worker: str, slots: int, queues: Sequence[str]) -> None:
        """Say how many runs this executor can take from which Celery queues (0: none any more).

        One script; at the first call also one transaction that declares the agents and seeds the limits.
        """
        if not self._is_enrolled:
            self._enroll()
        hold_s = max(self._config.lease_s, 3 * self._config.beat_s)
        self._promoter.settle(
            lambda: self._promoter.queue.announce(
                executor, worker, slots, queues, hold_s=hold_s, ring_s=self._config.ring_s
            )
        )

    def retire(self, worker: str) -> None:
        """Say that a worker takes no more runs; called when it was told to stop."""
        self._promoter.queue.retire(worker)

    def leave(self, executor: str, queues: Sequence[str], *, worker: str = "") -> None:
        """Forget an executor that ended in good order and holds nothing."""
        self._promoter.settle(
            lambda: self._promoter.queue.announce(
                executor, worker, 0, queues, hold_s=1, ring_s=self._config.ring_s
            )
        )
        with self._log.transaction() as tx:
            tx.executors.remove(executor)

    def repair(self) -> float:
        """Look once for what is silent, unanswered, forgotten or overdue, and mend it.

        Three scripts, one command and two reads when nothing is wrong; every `ring_s` one process also
        compares all open runs with Redis, in pages.

        Returns:
            Seconds until the next look, at most `repair_s`.
        """
        try:
            return self._look_once()
        except CoordinationDamaged as cause:
            self._restore.rebuild(cause)
            return self._config.repair_s

    def take_over(self, silent: Held) -> bool:
        """Make a silent lease ours, and write what becomes of its run; False: it is not silent any more."""
        return self._take_over(silent, f"was silent for {self._config.lease_s:g} s")

    def bury(self, executor: str) -> None:
        """Write what becomes of the runs of an executor whose process is known to be dead.

        For whoever saw it die: the others judge by silence.  One read, then a transaction and a script a
        run, then one look at all leases for those it had begun and not claimed; idempotent, and what is
        not done is done by the repair pass.
        """
        with self._log.store.read() as tx:
            held = tx.runs.held_by(executor)
        for run in held:
            with self._going_on(run.run_id):
                ended = self._coordinator.lose(run.run_id, run.claims, executor, message="its process ended")
                if ended is not None:
                    self._coordinator.give_back(run.run_id, run.claims, executor)
        for lease in self._promoter.queue.observe():
            if lease.executor == executor:
                with self._going_on(lease.run_id):
                    self._take_over(lease, "ended")

    def _look_once(self) -> float:
        self._restore.run_if_cold()
        for silent in self._silence.judge(self._promoter.queue.observe(), self._vouchers):
            with self._going_on(silent.run_id):
                self.take_over(silent)
        rung = self._promoter.queue.ring()
        self._promoter.ring_for([*rung.repeated, *rung.granted])
        self._stop_overdue()
        if self._promoter.queue.may_compare(hold_s=self._config.ring_s):
            self._comparison.compare()
        return min(self._config.repair_s, rung.due_ms / 1000)

    def _take_over(self, lease: Held, why: str) -> bool:
        if not self._promoter.queue.take_over(lease, self._observer):
            return False
        run_id, claim, executor = lease.run_id, lease.claim, lease.executor
        log.warning("run=%s claim=%s executor=%s %s: taken over", run_id, claim, executor, why)
        # SQL decides: whoever wrote first is right, and Redis is then told what SQL says
        self._coordinator.lose(run_id, claim, executor, message=f"its worker {executor} {why}")
        self._coordinator.give_back(run_id, claim, self._observer)
        return True

    def _end_orphans(self, candidates: set[str]) -> None:
        # Running under our id, and not executed by us: seen at two beats, because a claim is committed
        # a moment before its attempt is registered.
        for run_id in candidates & self._orphans:
            with self._log.store.read() as tx:
                run = tx.runs.get(run_id)
            if run is None or run.executor is None or run.status is not RunStatus.RUNNING:
                continue
            ended = self._coordinator.lose(
                run_id, run.claims, run.executor, message="its executor no longer executes it"
            )
            if ended is not None:
                self._coordinator.give_back(run_id, run.claims, run.executor)
        self._orphans = candidates

    def _vouchers(self, silent: list[Held]) -> dict[str, tuple[str, int]]:
        """For each silent run that SQL says its executor is running: that executor's beat in SQL."""
        found: dict[str, tuple[str, int]] = {}
        with self._log.store.read() as tx:
            for at in range(0, len(silent), _PAGE):
                page = silent[at : at + _PAGE]
                beats = tx.executors.beats({held.executor for held in page})
                claims = tx.runs.claims_of([held.run_id for held in page])
                found |= {
                    held.run_id: (held.executor, beats[held.executor])
                    for held in page
                    if held.executor in beats and claims.get(held.run_id) == (held.executor, held.claim)
                }
        return found

    def _stop_overdue(self) -> None:
        with self._log.store.read() as tx:
            # those that are passed over stay overdue, and must not hide the others
            overdue = tx.runs.overdue(_OVERDUE + len(self._passed_over))
        for run in overdue:
            with self._going_on(run.run_id):
                self._stop(run)

    def _stop(self, run: OverdueRun) -> None:
        if run.is_running:
            self._stopper.request(run.run_id, StopKind.TIMEOUT, reason="run_timeout", by="timer")
        else:
            self._stopper.withdraw(
                run.run_id,
                RunStatus.TIMEOUT,
                code="queue_timeout",
                message=f"the run waited longer than its queue_timeout of {run.queue_timeout:g} s",
                only_if=lambda waiting: waiting.status is RunStatus.PENDING,
            )

    @contextmanager
    def _going_on(self, run_id: str) -> Iterator[None]:
        """Pass over a run that cannot be mended, as one whose row is damaged; said once a run."""
        try:
            yield
        except (CoordinationDamaged, CoordinationUnavailable, StorageConnectionFailed):
            # nothing is wrong with this one: the others would fail alike
            raise
        except Exception as cause:  # noqa: BLE001 - a damaged row fails in many ways
            if run_id not in self._passed_over:
                self._passed_over.add(run_id)
                log.error("run=%s cannot be mended and is passed over: %s", run_id, one_line(str(cause)))

    def _enroll(self) -> None:
        with self._log.transaction() as tx:
            self._restore.seed_limits(tx)
            tx.executors.forget(_FORGET_S)
            for spec in self._registry:
                terms = AgentTerms(
                    queue=spec.queue or self._config.default_queue,
                    stop_grace_s=spec.stop_grace_s,
                    run_timeout=spec.run_timeout,
                    max_attempts=spec.max_attempts,
                    resumable=spec.resumable,
                )
                words = encode(sorted(spec.capabilities), what="capabilities", max_bytes=10_000)
                tx.agents.declare(spec.name, terms, words)
        self._is_enrolled = True
        try:
            self._restore.run_if_cold()
        except CoordinationUnavailable as cause:
            log.warning("Redis is away at the start of this worker: %s", cause.message)


def _owns(running: dict[str, HeldRun], run_id: str, claim: int) -> bool:
    run = running.get(run_id)
    return run is not None and run.claims == claim
