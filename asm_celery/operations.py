"""`ControlOperations`: control of runs by their ids alone, with a durable history of who did what.

State is derived from SQL, never kept beside it, so it cannot disagree with what runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from asm_celery.checks import check_actor, check_list, check_seconds, check_session_id, is_run_id
from asm_celery.errors import AsmError, DrainTimeout, ValidationError
from asm_celery.model import Hold, PauseReceipt, Run, StopReceipt
from asm_celery.runtime import Runtime
from asm_celery.showing import shown
from asm_celery.states import RunStatus, StopKind
from asm_celery.store.operators import ControlOperation
from asm_celery.store.run_queries import OpenRun

# A drain of the installation listens to no session: it looks again after so long.
_LOOK_AGAIN_S: Final = 0.5
_MOST_TOLD: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStatus:
    """Where a run is under control operations.

    Attributes:
        state: the run's status; ``stopping`` while a requested stop is not true yet, ``paused`` while its
            agent is asked to wait; ``unknown`` for a run that does not exist.
        last_operation: the newest operation asked for, or None.
    """

    run_id: str
    state: str
    last_operation: str | None
    history: list[ControlOperation]


class ControlOperations:
    """Operations on runs, whoever submitted them."""

    def __init__(self, runtime_of: Callable[[], Runtime]) -> None:
        self._runtime_of = runtime_of

    def interrupt(self, run_id: str, *, by: str = "operator") -> StopReceipt:
        """Ask for a run to end `interrupted`, keeping what it produced; see `StopReceipt`.

        Guarantee: idempotent; the first committed stop of a run decides, and a run that has ended is left
        as it is (``already_terminal``).  Raises RunNotFound.
        """
        return self._runtime_of().stopper.request(run_id, StopKind.INTERRUPT, by=check_actor(by))

    def cancel(self, run_id: str, *, by: str = "operator") -> StopReceipt:
        """Ask for a run to end `cancelled`; otherwise as `interrupt`."""
        return self._runtime_of().stopper.request(run_id, StopKind.CANCEL, by=check_actor(by))

    def pause(self, run_id: str, *, by: str = "operator") -> PauseReceipt:
        """Ask for a run to wait where its agent lets it (``ctx.wait_if_paused()``); see `Pauser.pause`.

        Guarantee: idempotent and durable; a paused run keeps its place and its slots, its `run_timeout`
        goes on, and it can be stopped.

        Raises:
            RunNotFound: no such run.
            CapabilityNotSupported: its agent does not declare the capability ``pause``.
            InvalidOperation: it has ended, or was asked to stop: that is final.
        """
        return self._runtime_of().pauser.pause(run_id, by=check_actor(by))

    def resume(self, run_id: str, *, by: str = "operator") -> PauseReceipt:
        """Let a paused run go on; for a run that is not paused a success that changes nothing.

        Raises: as `pause`.
        """
        return self._runtime_of().pauser.resume(run_id, by=check_actor(by))

    def cancel_all(self, run_ids: Collection[str], *, by: str = "operator") -> dict[str, Any]:
        """Cancel many runs, one transaction each.

        Returns:
            for each id its StopReceipt, or the AsmError that refused it.
        """
        answers: dict[str, Any] = {}
        for run_id in check_list(run_ids, what="run_ids"):
            if not isinstance(run_id, str):
                raise ValidationError(
                    f"run_ids has {shown(run_id)}, which is no id", details={"field": "run_ids"}
                )
            try:
                answers[run_id] = self.cancel(run_id, by=by)
            except AsmError as refused:
                answers[run_id] = refused
        return answers

    def interrupt_session(self, session_id: str, *, by: str = "operator") -> dict[str, StopReceipt]:
        """Interrupt every open run of a session, in one transaction; those that have ended are left alone.

        Returns:
            for each run that was open its StopReceipt; empty where none was.

        Raises:
            SessionNotFound: no such session.
        """
        return self._runtime_of().control.stop_session(check_session_id(session_id), by=check_actor(by))

    def hold(self, *, by: str = "operator") -> Hold:
        """Let nothing new start in the whole installation; what runs goes on, and runs are still accepted.

        Guarantee: idempotent; it is in SQL, and holds through the loss of Redis and of every process until
        `release`.  States of sessions stay as they are.  A run that was just being started may still start.
        """
        return self._runtime_of().holding.move(True, by=check_actor(by))

    def release(self, *, by: str = "operator") -> Hold:
        """End a `hold`: what waits starts, in sessions that are not paused themselves; idempotent."""
        return self._runtime_of().holding.move(False, by=check_actor(by))

    def get_hold(self) -> Hold:
        """Return whether the installation is held, by whom and since when; from SQL."""
        return self._runtime_of().holding.read()

    def drain(self, timeout: float | None = 60.0) -> None:
        """Return when no run of any session is queued or in flight; admission stays open.

        Args:
            timeout: seconds of patience; None: as long as it takes.

        Raises:
            DrainTimeout: with at most 200 of the runs that are left, and why; work goes on.
        """
        check_seconds(timeout, what="timeout")
        deadline = None if timeout is None else time.monotonic() + timeout
        while (left := self.left_to_drain(deadline, timeout)) is not None:
            time.sleep(left)

    def left_to_drain(self, deadline: float | None, timeout: float | None) -> float | None:
        """Return how long to wait before the next look at a drain, None when nothing is open any more.

        Raises:
            DrainTimeout: the deadline (monotonic) has passed.
        """
        with self._runtime_of().store.read() as tx:
            open_runs = tx.runs.open_page(limit=_MOST_TOLD)
        if not open_runs:
            return None
        left = math.inf if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise _not_drained(open_runs, timeout or 0.0, self._runtime_of().inspection.why_idle())
        return min(left, _LOOK_AGAIN_S)

    def get_operation_status(self, run_id: str) -> OperationStatus:
        """Return a run's state and operations; state ``unknown`` for a run that does not exist."""
        if not is_run_id(run_id):
            named = run_id[:200] if isinstance(run_id, str) else shown(run_id, 200)
            return OperationStatus(run_id=named, state="unknown", last_operation=None, history=[])
        with self._runtime_of().store.read() as tx:
            run = tx.runs.get(run_id)
            history = tx.operations.of(run_id)
        return OperationStatus(
            run_id=run_id,
            state="unknown" if run is None else _state_of(run),
            last_operation=history[-1].operation if history else None,
            history=history,
        )

    def get_operation_history(self, run_id: str) -> list[ControlOperation]:
        """Return the operations on a run, oldest first: what, who, when, result."""
        return self.get_operation_status(run_id).history


def _not_drained(open_runs: list[OpenRun], timeout: float, why_idle: str) -> DrainTimeout:
    in_flight = [run.run_id for run in open_runs if run.status is RunStatus.RUNNING]
    queued = [run.run_id for run in open_runs if run.status is RunStatus.PENDING]
    why = f"{len(in_flight)} running, {len(queued)} waiting behind them" if in_flight else why_idle
    most = "at least " if len(open_runs) == _MOST_TOLD else ""
    return DrainTimeout(
        f"the installation was not empty after {timeout:g} s: {most}{len(in_flight)} in flight, {len(queued)} "
        f"queued; {why}",
        session_id="",
        queued=queued,
        in_flight=in_flight,
        why=why,
    )


def _state_of(run: Run) -> str:
    if run.status is RunStatus.RUNNING and run.stop_requested is not None:
        return "stopping"
    return "paused" if run.paused_at is not None else run.status.value
