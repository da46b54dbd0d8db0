"""What Celery's revoke and terminate mean for our task, and which state monitors show at its end.

A task message is one claim of a run, so revoking it - from Flower, `celery control` or Python, with or without
terminate, whether it waits, is reserved or runs - is a cancel of that run.  Celery's own terminate would signal
whatever its child executes by then, and tell that it is over before it is; ours goes down the ladder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.control import Panel
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.utils.functional import maybe_list

from asm_celery.dispatch import OURS, TASK, claim_of
from asm_celery.states import STOPPED_STATUS, RunStatus


class RunRequest(Request):
    """One doorbell inside a worker; its task has a `life`, which knows where runs execute."""

    _is_asked = False
    _tell_success: Callable[..., Any] = Request.on_success

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep our ends: Celery derives a class with a quicker `on_success`, which does not ask this one."""
        super().__init_subclass__(**options)
        quicker = cls.__dict__.get("on_success")
        if quicker is not None:
            cls._tell_success = quicker
            del cls.on_success

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Have the place that executes this claim ended when the agent's grace is over."""
        self._is_asked = True
        found = claim_of(self.id)
        if found is not None:
            task: Any = self.task
            task.life.ask_to_end(*found)

    def on_success(self, failed__retval__runtime: tuple[Any, Any, Any], **kwargs: Any) -> Any:
        """Tell monitors how the run ended; the task itself only says the run's status."""
        failed, told, _ = failed__retval__runtime
        # what comes from a child is the status's repr
        ended = None if failed or told is None else str(told).strip("'")
        if ended in (None, "None", RunStatus.COMPLETED):
            return self._tell_success(failed__retval__runtime, **kwargs)
        task_ready(self)
        if ended in STOPPED_STATUS.values():
            self._tell_stopped()
        elif ended == RunStatus.PENDING:
            self.send_event("task-retried", exception="the run waits for its next attempt", traceback="")
        else:
            self.send_event("task-failed", exception="the run failed: its log says why", traceback="")
        return None

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A child that was ended for this claim is no failure of a task."""
        if self._is_asked:
            task_ready(self)
            self._tell_stopped()
            return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _tell_stopped(self) -> None:
        self.send_event("task-revoked", terminated=True, signum=None, expired=False)


def _told_of_revokes(known: Callable[..., Any], ids_at: int) -> Callable[..., Any]:
    """Return a control command that does what Celery's does, and cancels the runs whose tasks are named."""

    def command(state: Any, *args: Any, **kwargs: Any) -> Any:
        # what we sent ourselves is for a run that is stopped in SQL already
        is_ours = kwargs.pop(OURS, False)
        answer = known(state, *args, **kwargs)
        named = kwargs.get("task_id", args[ids_at] if len(args) > ids_at else None)
        task = state.app.tasks.get(TASK)
        if not is_ours and task is not None:
            for task_id in maybe_list(named) or []:
                task.life.cancel_revoked(task_id)
        return answer

    return command


# Celery looks only at tasks this worker holds, and only if they are to be terminated.
Panel.data["revoke"] = _told_of_revokes(Panel.data["revoke"], 0)
Panel.data["terminate"] = _told_of_revokes(Panel.data["terminate"], 1)
