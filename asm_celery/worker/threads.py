"""Our threads pool: Celery's, on threads that a worker can end without.

Celery's own waits for every thread at its end, for ever if an agent does not return.  Here a thread whose
attempt was given up counts as lost: nobody waits for it, and it takes no more work.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any
from weakref import WeakSet

from celery.concurrency.thread import TaskPool as CeleryTaskPool

from asm_celery.worker.guard_link import link

log = logging.getLogger("asm_celery.worker")

_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Threads(Executor):
    """An executor of daemon threads, started as they are needed.

    Args:
        size: how many at most.
        begin: called first in each.
    """

    def __init__(self, size: int, begin: Callable[[], object]) -> None:
        self._size = size
        self._begin = begin
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._lost: WeakSet[threading.Thread] = WeakSet()
        self._is_closed = False
        self._busy = 0
        self._wake: Callable[[], object] | None = None
        # Celery's pool counts these
        self._threads: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a thread call it, in the order of submission."""
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this worker is ending")
            self._busy += 1
            self._jobs.put((future, fn, args, kwargs))
            # an idle thread is reserved for each job, so that none waits behind a thread that is busy
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._size:
                self._add()
        return future

    def wake_by(self, wake: Callable[[], object]) -> None:
        """Have `wake` called whenever all threads were busy and one is free again."""
        self._wake = wake

    def give_up(self, thread: int | None, *, substitute: bool) -> None:
        """Count a thread as lost; with `substitute` another may be started for it."""
        with self._lock:
            lost = {one for one in self._threads if one.ident == thread}
            self._threads -= lost
            self._lost |= lost
            self._busy -= len(lost)
            self._size -= 0 if substitute else len(lost)
            if substitute and self._jobs.qsize() and len(self._threads) < self._size:
                self._add()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; wait for the threads that are not lost, also for those that are lost meanwhile."""
        with self._lock:
            self._is_closed = True
        while cancel_futures:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in range(self._size):
            self._jobs.put(None)
        while wait and (thread := self._alive()) is not None:
            thread.join(0.2)

    def _alive(self) -> threading.Thread | None:
        with self._lock:
            return next((thread for thread in self._threads if thread.is_alive()), None)

    def _add(self) -> None:
        name = f"asm-run-{len(self._threads)}-{time.monotonic_ns() % 10_000}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        self._begin()
        while threading.current_thread() not in self._lost:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                self._idle.release()
                job = self._jobs.get()
            if job is None:
                return
            future, act, args, kwargs = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(act(*args, **kwargs))
                except BaseException as cause:  # noqa: BLE001 - it is the caller's, and the thread goes on
                    future.set_exception(cause)
            self._end()

    def _end(self) -> None:
        with self._lock:
            if threading.current_thread() in self._lost:
                return
            was_full = self._busy >= self._size
            self._busy -= 1
        if was_full and self._wake is not None:
            self._wake()


class TaskPool(CeleryTaskPool):
    """Celery's threads pool on `Threads`, which belong to its application and not to the process's default."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor = Threads(self.limit, self.app.set_current)
        self._substitutes = 0

    @property
    def num_processes(self) -> int:
        """How many requests the consumer may hold: what a lost thread executes stays one of them."""
        return int(self.limit) + self._substitutes

    def register_with_event_loop(self, loop: Any) -> None:
        """Have the consumer, which takes no doorbell while all threads are busy, look again when one is free."""
        self.executor.wake_by(lambda: loop.call_soon(_look))

    def give_up(self, thread: int | None, *, substitute: bool) -> None:
        """Count a thread as lost."""
        self._substitutes += substitute
        self.executor.give_up(thread, substitute=substitute)


def _look() -> None:
    """Nothing: the loop's turn is all that is wanted."""


class _Successor:
    """Whether this process makes place for a new one of the same command when it ends."""

    is_wanted = False


def replace_at_exit() -> None:
    """Have this process start anew, under its process id, when it ends in good order."""
    _Successor.is_wanted = True


@atexit.register
def _replace() -> None:
    # Registered before Celery's own, so called after them: its pid file is gone by now.  Lost threads end
    # with the program they are in.
    if _Successor.is_wanted:
        log.warning("this worker starts anew: %s", " ".join(sys.orig_argv))
        link().close()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command
