"""`ExecutorHost`: all that one executing process holds, put together and started as one.

In a prefork worker each child has one and the main process none; in a threads or solo worker the main
process has it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Final

from asm_celery.errors import InternalError
from asm_celery.model import Run
from asm_celery.runtime import Runtime
from asm_celery.worker.attempt import Attempts
from asm_celery.worker.executor import Executor
from asm_celery.worker.heartbeat import Heartbeat
from asm_celery.worker.writer import EventWriter

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
        is_retiring: Callable[[], bool],
    ) -> None:
        """Start executing; connects in its threads only, so it returns at once."""
        runtime = self._runtime_of()
        config, attempts, name = runtime.config, Attempts(), new_executor_id()
        coordinator = runtime.coordinator

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
            is_retiring=is_retiring,
        )
        self._heartbeat.start()

    def stop(self) -> None:
        """End the threads; safe to repeat, and where nothing was started."""
        if self._heartbeat is not None and self._writer is not None:
            self._heartbeat.stop()
            self._writer.stop()
        self._executor = self._heartbeat = self._writer = None
