"""`ExecutorHost`: all that one executing process holds, put together and started as one.

In a prefork worker each child has one and the main process none; in a threads or solo worker the main
process has it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final

from asm_celery.dispatch import claim_of
from asm_celery.errors import AsmError, InternalError
from asm_celery.model import Run
from asm_celery.runtime import Runtime
from asm_celery.states import StopKind
from asm_celery.worker.attempt import Attempt, Attempts
from asm_celery.worker.board import Board, ChildSeat
from asm_celery.worker.ears import SHORTEST_S, Ears, Hearing
from asm_celery.worker.executor import Executor
from asm_celery.worker.guard_link import link
from asm_celery.worker.heartbeat import Heartbeat
from asm_celery.worker.ladder import ChildPlace, Place, ThreadPlace, lead_down
from asm_celery.worker.pool import Retirement
from asm_celery.worker.writer import EventWriter

log = logging.getLogger("asm_celery.worker")

_NOT_OF_AN_ID: Final = re.compile(r"[^A-Za-z0-9._:-]")


def new_executor_id() -> str:
    """Return ``host:pid:8 hex digits``: never used again, also when the process id is."""
    host = _NOT_OF_AN_ID.sub("-", socket.gethostname()) or "localhost"
    return f"{host[:100]}:{os.getpid()}:{os.urandom(4).hex()}"


class ExecutorHost:
    """The executor of this process and what belongs to it.

    Args:
        runtime_of: gives this process's runtime; called at `start`, so after a fork.
    """

    def __init__(self, runtime_of: Callable[[], Runtime]) -> None:
        self._runtime_of = runtime_of
        self._executor: Executor | None = None
        self._heartbeat: Heartbeat | None = None
        self._writer: EventWriter | None = None
        self._ears: Ears | None = None

    @property
    def executor(self) -> Executor:
        """The running executor; raises InternalError where none was started."""
        if self._executor is None:
            raise InternalError(
                "no executor was started in this process: runs are executed by the Celery workers of this "
                "application"
            )
        return self._executor

    @property
    def is_started(self) -> bool:
        """True where an executor runs: in a prefork child, or the main process of other pools."""
        return self._executor is not None

    def start(
        self,
        *,
        worker: str,
        incarnation: str,
        slots: int,
        queues: Sequence[str],
        retirement: Retirement,
        board: Board | None = None,
        tick: Callable[[], None] | None = None,
        on_lost: Callable[[int | None], None] | None = None,
        waiting: Callable[[], int] | None = None,
        hearing: Hearing | None = None,
    ) -> None:
        """Start executing; connects in its threads only, so it returns at once.

        Args:
            board: in a prefork child, its worker's; None where threads execute.
            tick: called twice a second as a sign of life, where there is no board.
            on_lost: called with the id of a thread whose attempt was given up.
            waiting: how many messages wait for this worker; None: nobody looks whether it is deaf.
            hearing: how many it has taken.
        """
        runtime = self._runtime_of()
        config, name, coordinator = runtime.config, new_executor_id(), runtime.coordinator
        place: Place
        if board is not None:
            place = ChildPlace(ChildSeat(board, name))
            threading.Thread(target=self._hear, args=(board, runtime), name="asm-words", daemon=True).start()
        else:
            place = ThreadPlace(lambda attempt: self._abandon(attempt, on_lost), tick)
        attempts = Attempts(lambda attempt: lead_down(attempt, place))

        def history(run: Run, limit: int) -> list[Run]:
            with runtime.store.read() as transaction:
                return transaction.runs.ended_before(run.session_id, run.position, limit)

        self._writer = EventWriter(
            coordinator.append, batch_s=config.event_batch_ms / 1000, batch_size=config.event_batch_size
        )
        self._executor = Executor(
            name,
            config=config,
            registry=runtime.registry,
            coordinator=coordinator,
            attempts=attempts,
            writer=self._writer,
            history=history,
            place=place,
        )
        self._heartbeat = Heartbeat(
            name,
            worker=worker,
            incarnation=incarnation,
            slots=slots,
            queues=queues,
            config=config,
            recovery=runtime.recovery,
            stopper=runtime.stopper,
            hub=runtime.hub,
            attempts=attempts,
            place=place,
            retirement=retirement,
        )
        self._heartbeat.start()
        if waiting is not None and hearing is not None:
            self._ears = Ears(
                max(6 * config.ring_s, SHORTEST_S),
                is_free=lambda: len(attempts.all()) < slots and not retirement.has_begun,
                waiting=waiting,
                taken=hearing.taken,
                on_deaf=retirement.replace,
            )
            self._ears.start()

    def execute(self, run_id: str, claim: int) -> str | None:
        """Answer a doorbell."""
        return self.executor.execute(run_id, claim)

    def stop(self) -> None:
        """End the threads; safe to repeat, and where nothing was started."""
        if self._ears is not None:
            self._ears.stop()
        if self._executor is not None and self._heartbeat is not None and self._writer is not None:
            if self._heartbeat.stop():
                link().left(self._executor.name)
            self._writer.stop()
        self._executor = self._heartbeat = self._writer = None

    def _abandon(self, attempt: Attempt, on_lost: Callable[[int | None], None] | None) -> None:
        thread = attempt.reach.thread
        if self._executor is not None and self._executor.abandon(attempt) and on_lost is not None:
            on_lost(thread)

    def _hear(self, board: Board, runtime: Runtime) -> None:
        """Do what the main process says to any of its children, until there is no main process."""
        board.keep_incoming()
        while (word := board.hear()) is not None:
            try:
                if word["do"] == "bury":
                    if "revoked" in word:
                        cancel_revoked(runtime, word["revoked"])
                    runtime.recovery.bury(word["executor"])
                else:
                    cancel_revoked(runtime, word["task_id"])
            except AsmError as cause:
                log.warning("%s was not done: %s", word, cause)


def cancel_revoked(runtime: Runtime, task_id: str) -> None:
    """Make a revoke of a run's task what it means: a cancel of that run, unless the claim has passed."""
    found = claim_of(task_id)
    if found is not None:
        run_id, claim = found
        runtime.stopper.request(
            run_id, StopKind.CANCEL, reason="revoked", by="celery revoke", only_claim=claim
        )
