"""Pausing one run: a durable wish, and the two ways its agent learns of it.

The runtime suspends no code: an agent that declares the capability ``pause`` waits by itself, in
``ctx.wait_if_paused()``.  Its executor is told over pub/sub, and learns the wish from its next beat at the
latest.  Pausing a session is `control`'s.
"""

from __future__ import annotations

import json
from typing import Final

from asm_celery.agent import AgentRegistry
from asm_celery.checks import check_run_id
from asm_celery.errors import CapabilityNotSupported, InternalError, InvalidOperation, RunNotFound
from asm_celery.events.log import EventLog, LogTransaction
from asm_celery.keys import Keys
from asm_celery.model import Event, PauseReceipt, Run
from asm_celery.states import EventType, RunStatus
from asm_celery.store.faults import retried

PAUSE: Final = "pause"
RESUME: Final = "resume"
# What an agent declares so that its runs may be asked so; whoever can wait can go on.
_NEEDED: Final = {PAUSE: frozenset({PAUSE}), RESUME: frozenset({PAUSE, RESUME})}
# the guard and the look behind it miss each other only while the run changes in between
_TRIES: Final = 20


class Pauser:
    """The moves that pause and resume a run."""

    def __init__(self, registry: AgentRegistry, log: EventLog, keys: Keys) -> None:
        self._registry = registry
        self._log = log
        self._keys = keys

    def pause(self, run_id: str, *, by: str) -> PauseReceipt:
        """Ask for a run to wait: durable at once, true when its agent next looks.

        One transaction of the flag, its event and the entry in the history; then one message.  A run that
        waits in line starts in its turn and waits then.  A paused run keeps its place and its slots, the
        time it may execute goes on, and it can be stopped.

        Guarantee: idempotent; holds through the loss of a worker and a hand-back, until `resume`.

        Raises:
            RunNotFound: no such run.
            CapabilityNotSupported: its agent does not declare ``pause``; nothing was written.
            InvalidOperation: it has ended, or was asked to stop; kept in the history as refused.
        """
        return self._move(run_id, PAUSE, by)

    def resume(self, run_id: str, *, by: str) -> PauseReceipt:
        """Let a paused run go on; a success that changes nothing for one that is not paused.

        Raises: as `pause`; the capability is ``pause`` or ``resume``.
        """
        return self._move(run_id, RESUME, by)

    @retried
    def _move(self, run_id: str, wish: str, by: str) -> PauseReceipt:
        check_run_id(run_id)
        for _ in range(_TRIES):
            with self._log.transaction() as tx:
                self._check_capability(tx, _known(tx, run_id), wish)
                moved = (tx.runs.pause if wish == PAUSE else tx.runs.resume)(run_id)
                run = moved or _known(tx, run_id)
                state = _state_of(run, wish, has_moved=moved is not None)
                if moved is not None:
                    tx.append(run.session_id, [_event(moved, wish, by)])
                if state is not None:
                    tx.operations.record(run_id, run.session_id, wish, by, state)
            if moved is not None:
                self._tell(moved, wish)
            if state == "refused":
                raise _refusal(run, wish)
            if state is not None:
                return PauseReceipt(run_id=run_id, state=state, status=run.status)
        raise InternalError(f"run {run_id} changed at each of {_TRIES} looks: try again")

    def _check_capability(self, tx: LogTransaction, run: Run, wish: str) -> None:
        spec = self._registry.get(run.agent)
        terms = tx.agents.get(run.agent) if spec is None else None
        declared = spec or terms
        if declared is None or not declared.capabilities & _NEEDED[wish]:
            raise CapabilityNotSupported(
                f"run {run.run_id} cannot be asked to {wish}: its agent {run.agent!r} does not declare the "
                f"capability 'pause'; declare it and call ctx.wait_if_paused(), or pause the session instead",
                details={"run_id": run.run_id, "capability": wish, "agent": run.agent},
            )

    def _tell(self, run: Run, wish: str) -> None:
        if run.status is RunStatus.RUNNING and run.executor:
            message = {"run": run.run_id, "claim": run.claims, "kind": wish, "version": run.pause_version}
            self._log.bus.ring(self._keys.control(run.executor), json.dumps(message).encode())


def _state_of(run: Run, wish: str, *, has_moved: bool) -> str | None:
    """Return what came of the wish; None: the run changed between the guard and the look behind it."""
    if has_moved:
        return "paused" if wish == PAUSE else "resumed"
    if run.is_terminal or run.stop_requested is not None:
        return "refused"
    if (run.paused_at is not None) != (wish == PAUSE):
        return None
    return "already_paused" if wish == PAUSE else "not_paused"


def _event(run: Run, wish: str, by: str) -> Event:
    return Event.new(
        EventType.RUN_PAUSED if wish == PAUSE else EventType.RUN_RESUMED,
        run.session_id,
        run_id=run.run_id,
        data={"by": by},
        attempt=run.attempt,
        provider=run.agent,
    )


def _refusal(run: Run, wish: str) -> InvalidOperation:
    is_so = f"has ended {run.status}" if run.is_terminal else f"was asked to stop ({run.stop_requested})"
    return InvalidOperation(
        f"run {run.run_id} cannot be asked to {wish}: it {is_so}, and that is final; submit a new run",
        details={"run_id": run.run_id, "status": run.status.value, "operation": wish},
    )


def _known(tx: LogTransaction, run_id: str) -> Run:
    run = tx.runs.get(run_id)
    if run is None:
        raise RunNotFound(
            f"there is no run {run_id!r}: it was never submitted here, or was deleted",
            details={"run_id": run_id},
        )
    return run
