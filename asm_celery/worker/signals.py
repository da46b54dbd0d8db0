"""The life of a Celery worker, told to our host: where the executor starts, retires and ends.

Prefork: each child starts one; the main process forks children at any time, so it has no thread and no
connection of ours.  Threads and solo: the main process starts it, before the first message is taken.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

from celery import Celery, bootsteps, current_app, signals
from celery.apps.worker import Worker
from celery.worker import state

from asm_celery.dispatch import TASK, claim_of
from asm_celery.errors import AsmError
from asm_celery.queue.connection import refuse_eviction
from asm_celery.runtime import Runtime
from asm_celery.worker import pool, reach
from asm_celery.worker.board import Board
from asm_celery.worker.children import SILENCE, ChildWatch
from asm_celery.worker.consumer import refuse_compressed, refuse_other_codecs
from asm_celery.worker.ears import Hearing, count_waiting
from asm_celery.worker.guard_link import die_with_parent, link
from asm_celery.worker.heartbeat import announced_name
from asm_celery.worker.host import ExecutorHost, cancel_revoked
from asm_celery.worker.lines import keep_lines
from asm_celery.worker.threads import replace_at_exit

log = logging.getLogger("asm_celery.worker")

_HEARING_S: Final = 1.0
# What a worker's end takes besides its runs.
_LEAVE_S: Final = 10.0


class WorkerLife:
    """Follows the workers of one application in this process.

    Celery's signals are heard by every application of a process, so each handler asks whose it is.  The
    application holds this object, by its steps, and the signals do not: they go when it goes.

    Args:
        is_ours: True for an application we made: its workers are set up for doorbells and consume the
            queues of the registered agents.  Another's are left as they are.
    """

    def __init__(
        self,
        app: Celery,
        host: ExecutorHost,
        runtime_of: Callable[[], Runtime],
        *,
        is_ours: bool,
    ) -> None:
        self._app = app
        self._host = host
        self._runtime_of = runtime_of
        self.is_ours = is_ours
        self._retirement = pool.Retirement()
        self._hearing = Hearing()
        self._incarnation = ""
        self._executes_here = False
        self._is_program = False
        self._main = 0
        self._is_scaled = False
        self._was_told = False
        self._ended = threading.Event()
        self._pool: Any = None
        self._board: Board | None = None
        self._watch: ChildWatch | None = None
        app.steps["worker"].add(type("ExecutorStep", (_ExecutorStep,), {"life": self}))
        if is_ours:
            signals.after_setup_logger.connect(keep_lines)
            signals.after_setup_task_logger.connect(keep_lines)
        signals.celeryd_init.connect(self._on_begin)
        signals.worker_process_init.connect(self._on_child)
        signals.worker_process_shutdown.connect(self._on_child_end)
        signals.worker_shutting_down.connect(self._on_stop_signal)
        signals.worker_shutdown.connect(self._on_end)
        signals.task_revoked.connect(self._on_revoked)

    def declare_queues(self) -> None:
        """Have this application's workers consume the default queue and those of the registered agents."""
        runtime, queues = self._runtime_of(), self._app.amqp.queues
        names = {runtime.config.default_queue, *(spec.queue for spec in runtime.registry if spec.queue)}
        for name in sorted(names):
            queues.select_add(queues.new_missing(name))

    def on_made(self, worker: Any) -> None:
        """A worker is being put together: neither its children nor its consumer exist yet."""
        if self.is_ours:
            refuse_other_codecs(self._app.conf.accept_content)
        # closed again before there are children
        refuse_eviction(self._runtime_of().config)
        self._executes_here = not pool.forks(worker)
        # children inherit both
        self._retirement = pool.Retirement()
        self._hearing = Hearing()
        self._incarnation = os.urandom(4).hex()
        # `celery worker` is a program, which can start anew; a worker inside another program is not
        self._is_program = isinstance(worker, Worker)
        self._main = os.getpid()
        # an autoscaler forks from a thread that ends before the worker does, and "parent" is that thread
        self._is_scaled = bool(getattr(worker, "autoscale", None))
        pool.use_ours(worker)
        if self.is_ours:
            pool.tune(worker)
        if self._is_program:
            if self.is_ours:
                refuse_compressed()
            # before there are children, so that theirs is the same
            link().start()
            if self.is_ours:
                # a burial rings for what it frees, and could not reach another application's broker
                link().bury_with(self._runtime_of().config)
        if not self._executes_here:
            self._board = Board(2 * pool.most_children(worker) + 8)

    def on_started(self, worker: Any) -> None:
        """The pool is up, the consumer is not."""
        self._pool = worker.pool
        if self._is_program:
            threading.Thread(target=self._watch_hearing, name="asm-hearing", daemon=True).start()
        silence_s = SILENCE * self._runtime_of().config.lease_s
        if self._executes_here:
            if threading.current_thread() is threading.main_thread():
                reach.prepare()
            if self._is_program:
                link().watch(os.getpid(), silence_s)
            self._start(worker.hostname, pool.slots(worker))
        elif self._board is not None:
            self._watch = ChildWatch(self._board, silence_s=silence_s)
            self._watch.start()

    def _watch_hearing(self) -> None:
        """Start this worker anew when it is deaf: from within, or if its loop turns no more, by its end."""
        grace_s = self._runtime_of().config.shutdown_grace_s + _LEAVE_S
        while not self._retirement.is_deaf:
            if self._ended.wait(_HEARING_S):
                return
        log.error("doorbells wait and this worker hears none: it ends when its runs have, and starts anew")
        replace_at_exit()
        flags: Any = state
        flags.should_stop = os.EX_OK
        if not self._ended.wait(grace_s):
            log.error(
                "this worker's loop does not turn: it ends now, and whoever supervises it starts it anew"
            )
            os._exit(os.EX_TEMPFAIL)

    def on_message(self) -> None:
        """The consumer has taken a message, whatever it is."""
        self._hearing.note()

    def on_closing(self, worker: Any) -> None:
        """The worker takes no more messages and waits for what runs; however it was told to."""
        self._retirement.begin()
        try:
            runtime = self._runtime_of()
            runtime.recovery.retire(announced_name(worker.hostname, self._incarnation))
            if not self._executes_here:
                # this process opened connections just now, and may still fork
                runtime.close()
        except Exception as cause:  # noqa: BLE001 - nothing may keep a worker from ending
            # the announcements run out by themselves
            log.warning("worker %s could not take back its capacity: %s", worker.hostname, cause)

    def _on_begin(self, instance: Any, **_: Any) -> None:
        # before -Q and -X are applied, so that they choose among our queues
        if self.is_ours and instance.app is self._app:
            self.declare_queues()

    def _on_child(self, sender: str, **_: Any) -> None:
        # a solo pool sends this too, from the main process
        if not self._executes_here and current_app == self._app:
            if not self._is_scaled:
                die_with_parent(self._main)
            reach.prepare()
            self._start(sender, 1)

    def _on_child_end(self, **_: Any) -> None:
        self._host.stop()

    def _on_stop_signal(self, sender: str, **_: Any) -> None:
        # Runs inside a signal handler: one byte, and the children stop announcing at their next beat.
        # What needs a connection is done by `on_closing`, a moment later.  Told again, it hurries.
        if self._was_told:
            self._retirement.hurry()
        self._was_told = True
        self._retirement.begin()

    def _on_end(self, sender: Any, **_: Any) -> None:
        if sender.app is self._app:
            self._ended.set()
            if self._is_program:
                # it ticks no more
                link().watch(os.getpid())
            self._host.stop()
            if self._watch is not None:
                self._watch.stop()

    def _on_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        """A message was discarded because its id was revoked, maybe long ago, or heard by another worker.

        Celery discards every message of that id from now on, so the run would never start, and never end.
        """
        if sender.name == TASK and sender.app is self._app:
            self.cancel_revoked(request.id)

    def cancel_revoked(self, task_id: str) -> None:
        """Cancel the run whose task was revoked; returns at once, for Celery's loop waits for nothing."""
        if claim_of(task_id) is None:
            return
        if self._watch is not None:
            if not self._watch.cancel(task_id):
                log.warning("the revoke of %s was not heard by any child: use asm cancel", task_id)
        else:
            threading.Thread(target=self._cancel, args=(task_id,), name="asm-revoked", daemon=True).start()

    def ask_to_end(self, run_id: str, claim: int) -> None:
        """Have the child that executes this claim end in its agent's grace.

        Where threads execute there is nothing to do: their own ladder has heard of the stop.
        """
        if self._watch is not None:
            self._watch.ask_to_end(run_id, claim)

    def _cancel(self, task_id: str) -> None:
        try:
            cancel_revoked(self._runtime_of(), task_id)
        except AsmError as cause:
            log.warning("the revoke of %s could not be carried out: %s", task_id, cause)

    def _on_lost(self, thread: int | None) -> None:
        """A thread did not leave its agent: this worker is replaced, or where it cannot be, the thread."""
        self._pool.give_up(thread, substitute=not self._is_program)
        if self._is_program:
            log.error(
                "a thread was lost to an agent: this worker ends when its other runs have, and starts anew"
            )
            replace_at_exit()
            self._retirement.begin()
            flags: Any = state
            flags.should_stop = os.EX_OK

    def _start(self, worker: str, slots: int) -> None:
        queues = list(self._app.amqp.queues.consume_from)
        self._host.start(
            worker=worker,
            incarnation=self._incarnation,
            slots=slots,
            queues=queues,
            retirement=self._retirement,
            hearing=self._hearing,
            board=self._board,
            tick=link().tick if self._is_program else None,
            on_lost=self._on_lost,
            waiting=partial(count_waiting, self._app, queues) if self._is_program and self.is_ours else None,
        )
        if self._is_program:
            link().executor(self._host.executor.name, self._main)


class _ExecutorStep(bootsteps.StartStopStep):
    """Our place in the worker's start and end; it comes after the pool and before the consumer."""

    life: ClassVar[WorkerLife]
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.life.on_made(worker)

    def start(self, worker: Any) -> None:
        self.life.on_started(worker)

    def stop(self, worker: Any) -> None:
        """Nothing: the pool, which ends after this, still waits for runs; `worker_shutdown` comes last."""

    def terminate(self, worker: Any) -> None:
        """Nothing, for the same reason."""

    def close(self, worker: Any) -> None:
        self.life.on_closing(worker)

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        if pool.forks(worker):
            pool.keep_full(worker, hub)
