"""`Heartbeat`: what an executing process does besides executing.

Three threads a process.  *Ticks* says twice a second that this interpreter runs.  *Beats* raises the beat of
every attempt here, delivers stop requests, enforces deadlines and announces capacity.  *Repair* mends what
others left.  They are apart because a repair pass may take seconds (a restore after Redis lost its memory
reads every open run), and a beat waits for its servers: either that late would look like a death.
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
        self._stopping = threading.Event()
        self._failing: set[tuple[str, str]] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads and listen for stop requests; returns at once, also when nothing answers."""
        self._hub.listen(self._config.keys.control(self._executor), self.hear)
        for name, target in (
            ("asm-tick", self._ticks),
            ("asm-beat", self._beats),
            ("asm-repair", self._repairs),
        ):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        # the first sign of life comes before the first agent, which may hold the interpreter at once
        self._place.tick()

    def stop(self) -> None:
        """End the threads; an executor that holds nothing any more is forgotten by all."""
        self._stopping.set()
        self._attempts.wake()
        for thread in self._threads:
            thread.join(_JOIN_S)
        if not self._attempts.all():
            self._guarded(self.leave)
        self._place.close()

    def beat(self) -> None:
        """Raise the beat of what is here, and tell the attempts what was answered."""
        attempts = {attempt.run_id: attempt for attempt in self._attempts.all()}
        # what is just being claimed is held too, lest it be ended as an orphan; but it cannot be lost yet
        begun = {run_id for run_id, attempt in attempts.items() if attempt.claim is not None}
        held = {run_id: attempt.number for run_id, attempt in attempts.items()}
        answer = self._recovery.beat(self._executor, held, worker=self._worker)
        for run_id, kind in answer.stops.items():
            attempts[run_id].stop(kind)
        for run_id, (is_paused, version) in answer.pauses.items():
            attempts[run_id].pause.tell(is_paused, version)
        for run_id in answer.lost & begun:
            attempts[run_id].stop(LOST)

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
        elif self._retired_at is None:
            self._retired_at = time.monotonic()
            # The main process does it too, but an announcement of ours may have crossed with that.
            self._recovery.retire(self._announced)

    def end_grace(self) -> None:
        """Ask what still runs to leave, `shutdown_grace_s` after its worker retired, or in a hurry."""
        if self._retired_at is None:
            return
        is_over = time.monotonic() - self._retired_at >= self._config.shutdown_grace_s
        if is_over or self._retirement.is_hurried:
            for attempt in self._attempts.all():
                attempt.stop(SHUTDOWN)

    def _ticks(self) -> None:
        was_told = False
        while not self._stopping.wait(_TICK_S):
            self._place.tick()
            if self._retirement.is_hurried and not was_told:
                was_told = True
                self._attempts.wake()

    def _beats(self) -> None:
        next_beat, was_hurried = time.monotonic(), False
        while not self._stopping.is_set():
            if time.monotonic() >= next_beat or self._retirement.is_hurried > was_hurried:
                was_hurried = self._retirement.is_hurried
                next_beat = time.monotonic() + self._config.beat_s
                for step in (self.announce, self.beat, self.end_grace):
                    self._guarded(step)
            self._guarded(self.enforce)
            deadline = self._attempts.next_deadline()
            until = next_beat if deadline is None else min(next_beat, deadline)
            self._attempts.wait(max(0.0, until - time.monotonic()))

    def _repairs(self) -> None:
        # a fleet that was started at once must not look at once
        delay = random.uniform(0.0, self._config.repair_s)
        while not self._stopping.wait(delay):
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
