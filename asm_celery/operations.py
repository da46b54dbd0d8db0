"""`ControlOperations`: control of runs by their ids alone, with a durable history of who did what.

State is derived from SQL, never kept beside it, so it cannot disagree with what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from asm_celery.checks import check_run_id, check_session_id
from asm_celery.errors import AsmError, CapabilityNotSupported, RunNotFound
from asm_celery.model import Run, StopReceipt
from asm_celery.runtime import Runtime
from asm_celery.states import RunStatus, StopKind
from asm_celery.store.operators import ControlOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStatus:
    """Where a run is under control operations.

    Attributes:
        state: the run's status, ``stopping`` while a requested stop is not true yet, or ``unknown``.
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
        """Ask for a run to end `interrupted`; idempotent.  Raises RunNotFound."""
        return self._runtime_of().stopper.request(run_id, StopKind.INTERRUPT, by=by)

    def cancel(self, run_id: str, *, by: str = "operator") -> StopReceipt:
        """Ask for a run to end `cancelled`; idempotent.  Raises RunNotFound."""
        return self._runtime_of().stopper.request(run_id, StopKind.CANCEL, by=by)

    def pause(self, run_id: str) -> StopReceipt:
        """Pause a run; raises CapabilityNotSupported unless its agent declares ``pause``."""
        return self._unsupported(run_id, "pause")

    def resume(self, run_id: str) -> StopReceipt:
        """Resume a paused run; raises CapabilityNotSupported unless its agent declares ``resume``."""
        return self._unsupported(run_id, "resume")

    def cancel_all(self, run_ids: Collection[str], *, by: str = "operator") -> dict[str, Any]:
        """Cancel many runs; returns for each id its StopReceipt, or the AsmError that refused it."""
        answers: dict[str, Any] = {}
        for run_id in run_ids:
            try:
                answers[run_id] = self.cancel(run_id, by=by)
            except AsmError as refused:
                answers[run_id] = refused
        return answers

    def interrupt_session(self, session_id: str) -> list[str]:
        """Interrupt every open run of a session in one transaction; returns their ids."""
        return self._runtime_of().control.stop_session(check_session_id(session_id))

    def get_operation_status(self, run_id: str) -> OperationStatus:
        """Return a run's state and operations; state ``unknown`` for a run that does not exist."""
        with self._runtime_of().store.read() as tx:
            run = tx.runs.get(run_id)
            history = tx.operations.of(run_id)
        state = "unknown" if run is None else run.status.value
        if run is not None and run.status is RunStatus.RUNNING and run.stop_requested is not None:
            state = "stopping"
        return OperationStatus(
            run_id=run_id,
            state=state,
            last_operation=history[-1].operation if history else None,
            history=history,
        )

    def get_operation_history(self, run_id: str) -> list[ControlOperation]:
        """Return the operations on a run, oldest first: what, who, when, result."""
        return self.get_operation_status(run_id).history

    def _unsupported(self, run_id: str, capability: str) -> StopReceipt:
        run = self._run(run_id)
        raise CapabilityNotSupported(
            f"run {run_id} cannot be asked to {capability}: its agent {run.agent!r} does not declare it; pause "
            "its session instead",
            details={"run_id": run_id, "capability": capability, "agent": run.agent},
        )

    def _run(self, run_id: str) -> Run:
        with self._runtime_of().store.read() as tx:
            run = tx.runs.get(check_run_id(run_id))
        if run is None:
            raise RunNotFound(f"there is no run {run_id!r}", details={"run_id": run_id})
        return run
