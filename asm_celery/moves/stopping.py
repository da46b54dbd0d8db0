"""Stop requests: a durable fact first, then the ways to make it true sooner.

A run that waits is withdrawn in the same transaction.  A run that executes is asked: the request is in SQL,
its executor is told over pub/sub, and learns it from its next beat at the latest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from asm_celery.checks import check_run_id
from asm_celery.codec import encode
from asm_celery.errors import InternalError, RunNotFound
from asm_celery.events.log import EventLog, LogTransaction
from asm_celery.keys import Keys
from asm_celery.model import Event, Lease, Run, StopReceipt
from asm_celery.moves.promotion import Promoter
from asm_celery.states import STOPPED_STATUS, TERMINAL_EVENT, EventType, RunStatus, StopKind
from asm_celery.store.faults import retried

# withdraw and request_stop miss each other only while a run moves between waiting and running
_TRIES = 20


@dataclass(slots=True, kw_only=True)
class Stops:
    """What a transaction stopped: runs withdrawn, and running ones that are to be told, with their workers."""

    withdrawn: list[Run] = field(default_factory=list)
    told: list[Run] = field(default_factory=list)
    workers: dict[str, str] = field(default_factory=dict)


class Stopper:
    """The moves that stop."""

    def __init__(self, log: EventLog, promoter: Promoter, keys: Keys) -> None:
        self._log = log
        self._promoter = promoter
        self._keys = keys

    @retried
    def request(
        self,
        run_id: str,
        kind: StopKind,
        *,
        reason: str | None = None,
        by: str = "caller",
        session_id: str | None = None,
        only_claim: int | None = None,
    ) -> StopReceipt:
        """Ask for a run to stop; the first committed request of a run decides, for ever.

        One transaction, then one script or one message.  Guarantee: idempotent; when this returns, the
        run can end only as the deciding request says.

        Args:
            only_claim: do nothing unless this is the claim the run has, or will have next: what was meant
                for a claim that has passed must not hit a later one.

        Raises:
            RunNotFound: no such run, or not of `session_id`.
        """
        check_run_id(run_id)
        for _ in range(_TRIES):
            stops = Stops()
            with self._log.transaction() as tx:
                run = self._known(tx, run_id, session_id)
                if only_claim is not None and only_claim != _present_claim(run):
                    return StopReceipt(run_id=run_id, state="passed", status=run.status)
                receipt = self._stop(tx, run, kind, reason, by, stops)
                if receipt is not None:
                    operation = {StopKind.TIMEOUT: "timeout"}.get(kind, kind.value)
                    tx.operations.record(run_id, run.session_id, operation, by, receipt.state)
            if receipt is not None:
                self.carry_out(stops)
                return receipt
        raise InternalError(f"run {run_id} changed its status at each of {_TRIES} looks: try again")

    @retried
    def withdraw(
        self, run_id: str, status: RunStatus, *, code: str, message: str, only_if: Callable[[Run], bool]
    ) -> bool:
        """End a waiting run as failed or timeout, with an error; False when it waits no more."""
        error: dict[str, object] = {"code": code, "message": message, "details": {}}
        with self._log.transaction() as tx:
            run = tx.runs.get(run_id)
            if run is None or not only_if(run):
                return False
            ended = tx.runs.withdraw(
                run_id, status, reason=code, error=encode(error, what="the error", max_bytes=1 << 20)
            )
            if ended is None:
                return False
            tx.append(ended.session_id, [terminal_event(ended, {**_spoken(error)})])
        self.carry_out(Stops(withdrawn=[ended]))
        return True

    def stop_open(self, tx: LogTransaction, session_id: str, *, reason: str) -> Stops:
        """Interrupt every open run of a session inside the caller's transaction.

        The caller commits, and then calls `carry_out`.  Run rows are locked in the order of their ids.
        """
        stops = Stops()
        for run in tx.runs.lock_open(session_id):
            if self._stop(tx, run, StopKind.INTERRUPT, reason, "caller", stops) is None:
                raise InternalError(f"run {run.run_id} moved under its lock")
            if run.stop_requested is not None:
                stops.told.append(run)
        return stops

    def carry_out(self, stops: Stops) -> None:
        """Make committed stops true: free what the withdrawn ones held, tell the executors of the others."""
        for run in stops.withdrawn:
            was = self._promoter.settle(lambda run_id=run.run_id: self._promoter.queue.finish(run_id))  # type: ignore[misc]
            if was == "dispatched":
                self._promoter.revoke(_task_id(run, run.claims + 1))
        for run in stops.told:
            if run.executor:
                message = {"run": run.run_id, "claim": run.claims, "kind": run.stop_requested}
                self._log.bus.ring(self._keys.control(run.executor), json.dumps(message).encode())
            if run.run_id in stops.workers:
                # an agent that holds its interpreter keeps its executor from hearing: its worker hears too
                self._promoter.terminate(_task_id(run, run.claims), stops.workers[run.run_id])

    def _stop(
        self, tx: LogTransaction, run: Run, kind: StopKind, reason: str | None, by: str, stops: Stops
    ) -> StopReceipt | None:
        withdrawn = tx.runs.withdraw(run.run_id, STOPPED_STATUS[kind], reason=reason)
        if withdrawn is not None:
            tx.append(run.session_id, [terminal_event(withdrawn, {"reason": reason, "by": by})])
            stops.withdrawn.append(withdrawn)
            return StopReceipt(run_id=run.run_id, state="withdrawn", status=withdrawn.status, kind=kind)
        told = tx.runs.request_stop(run.run_id, kind, reason=reason)
        if told is not None:
            data = {"kind": kind.value, "reason": reason, "by": by}
            asked = Event.new(
                EventType.RUN_STOP_REQUESTED,
                run.session_id,
                run_id=run.run_id,
                data=data,
                attempt=told.attempt,
                provider=run.agent,
            )
            tx.append(run.session_id, [asked])
            stops.told.append(told)
            worker = tx.executors.worker_of(told.executor)
            if worker:
                stops.workers[told.run_id] = worker
            return StopReceipt(run_id=run.run_id, state="requested", status=told.status, kind=kind)
        seen = tx.runs.get(run.run_id)
        if seen is None or not (seen.is_terminal or seen.stop_requested):
            return None
        state = "already_terminal" if seen.is_terminal else "requested"
        return StopReceipt(run_id=run.run_id, state=state, status=seen.status, kind=seen.stop_requested)

    def _known(self, tx: LogTransaction, run_id: str, session_id: str | None) -> Run:
        run = tx.runs.get(run_id)
        if run is None or (session_id is not None and run.session_id != session_id):
            where = f" in session {session_id!r}" if session_id else ""
            raise RunNotFound(
                f"there is no run {run_id!r}{where}: it was never submitted here, or was deleted",
                details={"run_id": run_id, "session_id": session_id},
            )
        return run


def _present_claim(run: Run) -> int:
    return run.claims + (run.status is RunStatus.PENDING)


def terminal_event(run: Run, data: dict[str, object]) -> Event:
    """Return the one event that tells how a run ended."""
    return Event.new(
        TERMINAL_EVENT[run.status],
        run.session_id,
        run_id=run.run_id,
        data={
            "status": run.status.value,
            **{name: value for name, value in data.items() if value is not None},
        },
        attempt=run.attempt,
        provider=run.agent,
    )


def _spoken(error: dict[str, object]) -> dict[str, object]:
    return {"error_code": error["code"], "error_message": error["message"]}


def _task_id(run: Run, claim: int) -> str:
    return Lease(
        run_id=run.run_id, session_id=run.session_id, agent=run.agent, claim=claim, queue=run.queue
    ).task_id
