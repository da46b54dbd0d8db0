"""What awaiting a run gives: its result, or the error that its status stands for.

Shared by the sync and the async face, so that both say the same.
"""

from __future__ import annotations

from typing import Final

from asm_celery.errors import (
    AwaitTimeout,
    CancelTimeout,
    RunCancelled,
    RunEnded,
    RunFailed,
    RunInterrupted,
    RunTimeout,
)
from asm_celery.model import Run, RunResult
from asm_celery.states import RunStatus

_ERRORS: Final[dict[RunStatus, type[RunEnded]]] = {
    RunStatus.FAILED: RunFailed,
    RunStatus.CANCELLED: RunCancelled,
    RunStatus.INTERRUPTED: RunInterrupted,
    RunStatus.TIMEOUT: RunTimeout,
}


def result_of(run: Run) -> RunResult:
    """Return the result of a completed run; raise the error of any other terminal one."""
    if run.status is RunStatus.COMPLETED:
        return run.result
    said = (run.error or {}).get("message")
    raise _ERRORS[run.status](
        f"run {run.run_id} ended {run.status}" + (f": {said}" if said else ""), result=run.result
    )


def await_timeout(run_id: str, timeout: float) -> AwaitTimeout:
    """Return the error of a caller whose patience ended."""
    return AwaitTimeout(
        f"run {run_id} had not ended after {timeout:g} s: it goes on, await it again or cancel it",
        run_id=run_id,
        timeout=timeout,
    )


def cancel_timeout(run: Run, timeout: float) -> CancelTimeout:
    """Return the error of a caller who waited in vain for a stop to become true."""
    where = f" at {run.executor}, in attempt {run.attempt}" if run.executor else ""
    return CancelTimeout(
        f"run {run.run_id} was asked to stop ({run.stop_requested}) and had not ended after {timeout:g} s: it is "
        f"{run.status}{where}; the request stands, await the run or look again",
        run_id=run.run_id,
        timeout=timeout,
        status=run.status.value,
        executor=run.executor,
    )
