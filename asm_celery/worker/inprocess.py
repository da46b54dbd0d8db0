"""`InProcessWorker`: a real Celery worker inside this process, for `AgentSessions.local()`.

It installs no signal handler, sets up no logging, prints nothing, and leaves Celery's process-wide state as
it found it, so that workers may follow one another in one process.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any, Final

from billiard import pool as billiard_pool
from celery import Celery, signals
from celery.exceptions import WorkerShutdown
from celery.worker import WorkController, state
from kombu.asynchronous import set_event_loop

from asm_celery.errors import CoordinationUnavailable
from asm_celery.worker.threads import TaskPool

START_S: Final = 20.0
# Celery's own loop and flags are global to a process: one worker is built or forced to end at a time.
_BUILDING: Final = threading.Lock()


class InProcessWorker:
    """A worker in a daemon thread of this process.

    Args:
        app: the application, made by `create_app` or completed by `install`.
        concurrency: how many runs it executes at once, a thread each.
    """

    def __init__(self, app: Celery, concurrency: int) -> None:
        self._app = app
        self._concurrency = concurrency
        self._controller: _Controller | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it and wait until it consumes.

        Raises:
            CoordinationUnavailable: it did not within 20 s, mostly because the broker does not answer.
        """
        with _BUILDING:
            controller = self._controller = _build(self._app, self._concurrency)
        self._thread = threading.Thread(target=controller.run, name="asm-worker", daemon=True)
        self._thread.start()
        if not controller.settled.wait(START_S) or not controller.is_ready:
            self.stop()
            raise CoordinationUnavailable(
                f"the worker inside this process did not start within {START_S:g} s: "
                f"is the broker {self._app.connection().as_uri()} up?"
            )

    def stop(self, timeout: float | None = None) -> None:
        """Take no more runs, wait for those that execute, end; safe to repeat.

        Runs that are still executing after `shutdown_grace_s` are asked to leave.

        Args:
            timeout: seconds to wait for the end; None: as long as it takes.
        """
        controller, thread = self._controller, self._thread
        if controller is None or thread is None:
            return
        controller.ask_to_end()
        thread.join(1.0)
        if thread.is_alive() and not controller.is_ending:
            # its loop does not turn: it waits for its broker, and looks at the process-wide flag only
            with _BUILDING:
                flags: Any = state
                flags.should_stop = os.EX_OK
                try:
                    controller.ending.wait(timeout)
                finally:
                    flags.should_stop = None
        thread.join(timeout)
        if not thread.is_alive():
            self._controller = self._thread = None


class _Controller(WorkController):
    """Celery's worker, which tells when it consumes and when it leaves."""

    hostname: str

    def __init__(self, **options: Any) -> None:
        self.settled = threading.Event()
        self.ending = threading.Event()
        self.is_ready = False
        super().__init__(**options)

    @property
    def is_ending(self) -> bool:
        return self.ending.is_set()

    def run(self) -> None:
        try:
            self.start()
        finally:
            self.settled.set()
            self.ending.set()

    def on_before_init(self, **_: Any) -> None:
        # what Celery's own worker program does here: queues are chosen after this
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=self.app.conf, options={})

    def on_consumer_ready(self, consumer: Any) -> None:
        self.is_ready = True
        self.settled.set()

    def on_close(self) -> None:
        self.ending.set()
        super().on_close()

    def ask_to_end(self) -> None:
        """Have its loop raise what Celery raises at a warm shutdown; other workers are not concerned."""
        hub: Any = self.hub
        hub.call_soon(self._leave)

    def _leave(self) -> None:
        # called once more when the hub is closed, if its loop never turned
        if not self.is_ending:
            raise WorkerShutdown(os.EX_OK)


def _build(app: Celery, concurrency: int) -> _Controller:
    # Celery takes the process's event loop, and replaces two locks that other threads of this process use
    clock: Any = app.clock  # type: ignore[attr-defined]  # not in the stubs
    lock, mutex = billiard_pool.Lock, clock.mutex
    set_event_loop(None)
    try:
        return _Controller(
            app=app,
            hostname=f"asm-local-{os.getpid()}-{os.urandom(3).hex()}@{socket.gethostname()}",
            concurrency=concurrency,
            pool=TaskPool,
            loglevel="WARNING",
            without_heartbeat=True,
        )
    finally:
        set_event_loop(None)
        billiard_pool.Lock = lock
        clock.mutex = mutex
