"""What a Celery pool is to us: which process runs the agents, and whether that process is about to end.

Also the step that keeps a prefork pool full.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # newer than its stubs
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool as CeleryThreads
from celery.exceptions import WorkerShutdown, WorkerTerminate

from asm_celery.worker.threads import TaskPool

# Stock Celery replaces a killed child in 0.2 s or, as often, in 5 s: when the child's pipe closed before
# the kernel had made the child reapable, only a timer of 5 s repairs the pool (celery issue 9588).
MAINTAIN_S: Final = 0.25


def forks(worker: Any) -> bool:
    """Say whether a worker's agents run in child processes, so that its main process must stay clean."""
    return isinstance(worker.pool_cls, type) and issubclass(worker.pool_cls, PreforkPool)


def slots(worker: Any) -> int:
    """Return how many runs the main process of a started worker executes at once."""
    return int(worker.pool.limit or 1)


def most_children(worker: Any) -> int:
    """Return how many children a prefork worker may have at once."""
    return max(int(worker.concurrency or 1), int(worker.max_concurrency or 0))


def use_ours(worker: Any) -> None:
    """Give a worker whose pool is Celery's threads ours, before its pool is made."""
    if worker.pool_cls is CeleryThreads:
        worker.pool_cls = TaskPool


def tune(worker: Any) -> None:
    """Set up a worker of our own application before its pool and its consumer are made."""
    if forks(worker) or worker.pool_cls is TaskPool:
        # no doorbell waits behind a busy child or thread: it stays on its list, for whoever is free first
        worker.app.conf.worker_disable_prefetch = True
    # mingle and gossip exchange what we neither need nor trust, and delay every start
    worker.options.update(without_mingle=True, without_gossip=True)


def keep_full(worker: Any, hub: Any) -> None:
    """Have a prefork pool replace dead children within half a second."""
    hub.call_repeatedly(MAINTAIN_S, worker.pool.maintain_pool)


class ProcessEnd(SystemExit):
    """This process was told to end because its agent did not leave in its grace."""


def ends_process(cause: BaseException | None) -> bool:
    """Say whether `cause` is Celery ending this process, not an agent that calls ``sys.exit``.

    In a prefork child SIGTERM raises SystemExit in the agent's code; what reaches us may also be another
    exception, raised by the agent while that one unwound.
    """
    return isinstance(cause, (WorkerShutdown, WorkerTerminate, ProcessEnd)) or (
        cause is not None and terminate_handler_fired()
    )


class Retirement:
    """How far the end of a worker has come, as it and the children it forks later see it alike.

    It only goes on, and may be told in a signal handler.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)

    def begin(self) -> None:
        """Take no new runs; what runs has its time to end."""
        self._page[0] |= 1

    def replace(self) -> None:
        """End, because this worker hears nothing any more, and start anew."""
        self._page[0] |= 5

    def hurry(self) -> None:
        """Ask what still runs to leave now."""
        self._page[0] |= 3

    @property
    def has_begun(self) -> bool:
        """True once the worker takes no new runs."""
        return bool(self._page[0] & 1)

    @property
    def is_hurried(self) -> bool:
        """True once nobody waits for what still runs."""
        return bool(self._page[0] & 2)

    @property
    def is_deaf(self) -> bool:
        """True once an executor of this worker found that it hears no doorbells."""
        return bool(self._page[0] & 4)
