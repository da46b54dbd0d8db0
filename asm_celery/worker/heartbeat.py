"""`Heartbeat`: what an executing process does besides executing.

Each thing that may wait has a thread of its own, so that nothing that hangs silences another.  *Ticks* says
twice a second that this interpreter runs, and stops what executes here when no witness has heard us for too
long.  *Beats* raises the beat in SQL and delivers stop requests; *renewals* announces capacity and raises the
beats in Redis; *deadlines* asks the overdue to stop; *repair* mends what others left, which may take seconds
(a restore after Redis lost its memory reads every open run).
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from asm_celery.config import Config
from asm_celery.errors import AsmError
from asm_celery.events.hub import Hub
from asm_celery.moves.pausing import PAUSE, RESUME
from asm_celery.moves.recovery import Recovery
from asm_celery.moves.stopping import Stopper
from asm_celery.states import StopKind
from asm_celery.worker.attempt import LOST, SHUTDOWN, Attempts
from asm_celery.worker.fence import Fence, Verdict, Witness
from asm_celery.worker.ladder import Place
from asm_celery.worker.pool import Retirement

log = logging.getLogger("asm_celery.worker")

_JOIN_S: Final = 5.0
_TICK_S: Final = 0.5


class Heartbeat:
    """Keeps one executor known, its attempts alive, and the installation mended.

    Args:
        executor: the executor's id.
        worker: the Celery worker's name.
        incarnation: a word that no other start of this worker has: what is said to have retired is this
            start, and not the next worker of the same name.
        slots: how many runs this executor takes at once.
        queues: the Celery queues its worker consumes.
        retirement: how far the end of its worker has come.
    """

    def __init__(
        self,
        executor: str,
        *,
        worker: str,
        incarnation: str,
        slots: int,
        queues: Sequence[str],
        config: Config,
        recovery: Recovery,
        stopper: Stopper,
        hub: Hub,
        attempts: Attempts,
        place: Place,
        retirement: Retirement,
    ) -> None:
        self._executor = executor
        self._worker = worker
        self._announced = announced_name(worker, incarnation)
        self._slots = slots
        self._queues = list(queues)
        self._config = config
        self._recovery = recovery
        self._stopper = stopper
        self._hub = hub
        self._attempts = attempts
        self._place = place
        self._retirement = retirement
        self._retired_at: float | None = None
        self._is_retired = False
        self._unknown: set[str] = set()
        self._stopping = threading.Event()
        self._tick_s = min(_TICK_S, config.lease_s / 10)
        self._fence = Fence(
            lease_s=config.lease_s,
            look_s=self._tick_s,
            ask_s=max(config.beat_s, config.lease_s / 5),
        )
        self._failing: set[tuple[str, str]] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads and listen for stop requests; returns at once, also when nothing answers."""
        self._hub.listen(self._config.keys.control(self._executor), self.hear)
        for name, target in (
            ("asm-tick", self._ticks),
            ("asm-beat", lambda: self._pulse(self.beat, self.record)),
            ("asm-renew", lambda: self._pulse(self.renew)),
            # by itself: the first one asks SQL, which may hang, and leases are renewed meanwhile
            ("asm-announce", lambda: self._pulse(self.announce)),
            ("asm-deadline", self._deadlines),
            ("asm-repair", self._repairs),
        ):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        # the first sign of life comes before the first agent, which may hold the interpreter at once
        self._place.tick()

    def stop(self) -> bool:
        """End the threads; True when it held nothing any more, and so was forgotten by all."""
        self._stopping.set()
        self._attempts.wake()
        until = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        is_idle = not self._attempts.all()
        if is_idle:
            self._guarded(self.leave)
        self._place.close()
        return is_idle

    def beat(self) -> None:
        """Raise the beat in SQL, and tell the attempts what was answered."""
        attempts = {attempt.run_id: attempt for attempt in self._attempts.all()}
        # what is just being claimed is held too, lest it be ended as an orphan; but it cannot be lost yet
        begun = {run_id for run_id, attempt in attempts.items() if attempt.claim is not None}
        held = {run_id: attempt.number for run_id, attempt in attempts.items()}
        at = self._fence.now()
        answer = self._recovery.beat(self._executor, held, worker=self._worker)
        self._fence.confirm(Witness.SQL, at)
        for run_id, kind in answer.stops.items():
            attempts[run_id].stop(kind)
        for run_id, (is_paused, version) in answer.pauses.items():
            attempts[run_id].pause.tell(is_paused, version)
        for run_id in answer.lost & begun:
            attempts[run_id].stop(LOST)

    def renew(self) -> None:
        """Raise the beats in Redis of what was claimed here and is not lost."""
        # a lease whose claim hangs in SQL is not kept alive: another may try
        held = {
            attempt.run_id: attempt
            for attempt in self._attempts.all()
            if attempt.claim is not None and not attempt.is_lost
        }
        at = self._fence.now()
        answer = self._recovery.renew(
            self._executor, {run_id: attempt.number for run_id, attempt in held.items()}
        )
        self._unknown = answer.unknown
        if held:
            # also where a lease is unknown: nobody can take over what is not there, and it is renewed when it is
            self._fence.confirm(Witness.REDIS, at)
        for run_id in answer.taken:
            held[run_id].stop(LOST)

    def record(self) -> None:
        """Record anew what Redis has lost; not where it is renewed, because this asks SQL, which may hang."""
        self._recovery.record(self._unknown)

    def look(self) -> None:
        """Stop what executes here when no witness has heard us for so long that others will take it over."""
        here = [one for one in self._attempts.all() if one.claim is not None and not one.has_left(0)]
        for attempt in here:
            # its claim was an answer of SQL's too, and Redis was asked behind one that came late
            self._fence.confirm(Witness.SQL, attempt.vouched_at)
        verdict = self._fence.look()
        if verdict is Verdict.STAY or not here:
            return
        for attempt in here:
            if not attempt.is_lost:
                log.error(
                    "run=%s claim=%s is stopped: neither SQL nor Redis has confirmed for %.1f s that it lives",
                    attempt.run_id,
                    attempt.number,
                    self._fence.silent_s(),
                )
            attempt.stop(LOST)
        if verdict is Verdict.FALL:
            self._place.fall()

    def leave(self) -> None:
        """Take back this executor's capacity and forget it."""
        self._recovery.leave(self._executor, self._queues, worker=self._announced)

    def hear(self, message: bytes) -> None:
        """Deliver one message of the control channel: ``{"run": id, "claim": n, "kind": "cancel"}``.

        The kinds ``pause`` and ``resume`` have the ``version`` of the pause too.
        """
        try:
            told = json.loads(message)
            run_id, number, kind = str(told["run"]), int(told["claim"]), str(told["kind"])
            version = int(told["version"]) if kind in (PAUSE, RESUME) else None
            stop = StopKind(kind) if version is None else None
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as cause:
            log.warning("a control message was not understood: %r (%s)", message[:200], cause)
            return
        if stop is not None:
            self._attempts.stop(run_id, number, stop)
        elif version is not None:
            self._attempts.pause(run_id, number, kind == PAUSE, version)

    def enforce(self) -> None:
        """Ask the attempts to stop whose time is up: in SQL first, so that it holds and is told."""
        for attempt in self._attempts.overdue():
            # asked again in a beat, should this one fail
            attempt.deadline = time.monotonic() + self._config.beat_s
            receipt = self._stopper.request(
                attempt.run_id, StopKind.TIMEOUT, reason="run_timeout", by="executor"
            )
            if receipt.kind is not None:
                attempt.stop(receipt.kind)

    def announce(self) -> None:
        """Tell how many runs this executor takes; once its worker retires, none, and then no more."""
        if not self._retirement.has_begun:
            self._recovery.announce(self._executor, self._announced, self._slots, self._queues)
        elif not self._is_retired:
            self._is_retired = True
            # The main process does it too, but an announcement of ours may have crossed with that.
            self._recovery.retire(self._announced)

    def end_grace(self) -> None:
        """Ask what still runs to leave, `shutdown_grace_s` after its worker retired, or in a hurry."""
        if not self._retirement.has_begun:
            return
        if self._retired_at is None:
            self._retired_at = time.monotonic()
        is_over = time.monotonic() - self._retired_at >= self._config.shutdown_grace_s
        if is_over or self._retirement.is_hurried:
            for attempt in self._attempts.all():
                attempt.stop(SHUTDOWN)

    def _ticks(self) -> None:
        was_told = False
        while not self._stopping.wait(self._tick_s):
            self._place.tick()
            self.look()
            if self._retirement.is_hurried and not was_told:
                was_told = True
                self._attempts.wake()

    def _pulse(self, *steps: Callable[[], None]) -> None:
        """Do the steps every `beat_s`, counted from the beginning of the last time."""
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + self._config.beat_s
            for step in steps:
                self._guarded(step)

    def _deadlines(self) -> None:
        while not self._stopping.is_set():
            self._guarded(self.end_grace)
            self._guarded(self.enforce)
            deadline, now = self._attempts.next_deadline(), time.monotonic()
            until = self._config.beat_s if deadline is None else min(self._config.beat_s, deadline - now)
            self._attempts.wait(max(0.0, until))

    def _repairs(self) -> None:
        # a fleet that was started at once must not look at once, nor come to look in step
        delay = random.uniform(0.0, self._config.repair_s)
        while not self._stopping.wait(delay * random.uniform(0.8, 1.0)):
            delay = self._config.repair_s
            found = self._guarded(self._recovery.repair)
            if found is not None:
                delay = min(delay, found)

    def _guarded(self, step: Callable[[], float | None]) -> float | None:
        """Do one step; an error ends the step only, and is logged when it is new."""
        name = step.__name__
        try:
            answer = step()
        except Exception as cause:
            known = (name, type(cause).__name__)
            if known not in self._failing:
                self._failing.add(known)
                log.warning(
                    "%s fails, it is tried again: %s", name, cause, exc_info=not isinstance(cause, AsmError)
                )
            return None
        if any(known[0] == name for known in self._failing):
            self._failing = {known for known in self._failing if known[0] != name}
            log.info("%s works again", name)
        return answer


def announced_name(worker: str, incarnation: str) -> str:
    """Return the name under which one start of a worker announces capacity and retires."""
    return f"{worker}/{incarnation}"
