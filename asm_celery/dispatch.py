"""Ring doorbells: send what a promoting script leased to Celery.

A message says "run R may start under claim n" and nothing else: lost, repeated or late, it changes nothing
but time.  So sending never fails a caller: a lease whose doorbell was not sent is rung again by the repair
loop.  Where broker and coordination are one server, the promoting script pushes the message itself (`Bell`),
and nothing is sent from here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final, Protocol

from celery import Celery

from asm_celery.keys import FORMAT_VERSION
from asm_celery.model import Bell, Lease

log = logging.getLogger(__name__)

TASK: Final = "asm.run"
# In the arguments of a revoke that we sent: the run is stopped already, nobody has to cancel it.
OURS: Final = "asm"
_TASK_ID: Final = re.compile(r"(run_[0-9a-f]{32})(?:\.([1-9][0-9]{0,8}))?\Z")
CeleryApp = Celery


class Dispatcher(Protocol):
    """Sends doorbells; never raises for a broker that is away."""

    @property
    def bell(self) -> Bell | None:
        """What the scripts push themselves for each lease; None where `dispatch` has to send it."""

    def dispatch(self, leases: Sequence[Lease]) -> None:
        """Ring for each lease."""

    def revoke(self, lease_id: str) -> None:
        """Ask workers to drop a doorbell they have not begun, so that monitors show it as revoked."""

    def terminate(self, lease_id: str, worker: str) -> None:
        """Have a worker end what executes this lease, when the agent's grace is over."""


class CeleryDispatcher:
    """Sends each doorbell as one Celery task message, whose id is the lease's task id.

    Args:
        app: returns the application, made at first use, because a web process may never dispatch.
        bell: makes, from the application, what the scripts push themselves; None: nothing.
    """

    def __init__(
        self, app: Callable[[], Celery], bell: Callable[[Celery], Bell | None] | None = None
    ) -> None:
        self._app = app
        self._bell_of = bell

    @cached_property
    def bell(self) -> Bell | None:
        """What the scripts push themselves; made once."""
        return None if self._bell_of is None else self._bell_of(self._app())

    def dispatch(self, leases: Sequence[Lease]) -> None:
        """Send a message a lease, one broker round trip each; nothing where the scripts have rung."""
        if self.bell is not None:
            return
        for lease in leases:
            try:
                self._app().send_task(TASK, **message_of(lease))
            except Exception as cause:  # noqa: BLE001 - kombu's errors differ by transport
                # none of them may fail the move: the repair loop rings again
                log.warning(
                    "the doorbell of %s was not sent, it will be rung again: %s", lease.task_id, cause
                )
                return

    def revoke(self, lease_id: str) -> None:
        """Broadcast a revoke; a worker that is away does not hear it, and need not."""
        self._control(lease_id, terminate=False, destination=None)

    def terminate(self, lease_id: str, worker: str) -> None:
        """Send a revoke with terminate to one worker; it checks what executes before it ends anything."""
        self._control(lease_id, terminate=True, destination=[worker])

    def _control(self, lease_id: str, *, terminate: bool, destination: list[str] | None) -> None:
        arguments = {"task_id": lease_id, "terminate": terminate, "signal": "SIGTERM", OURS: True}
        try:
            self._app().control.broadcast("revoke", arguments=arguments, destination=destination)
        except Exception as cause:  # noqa: BLE001 - as above; the executor hears of a stop without it
            log.info("the revoke of %s was not sent: %s", lease_id, cause)


def claim_of(task_id: object) -> tuple[str, int] | None:
    """Return the run and the claim number that a task id names; None for another's task."""
    found = _TASK_ID.match(task_id) if isinstance(task_id, str) else None
    return None if found is None else (found[1], int(found[2] or 1))


def message_of(lease: Lease) -> dict[str, Any]:
    """Return what `send_task` needs: ids and a claim number, no user text (monitors show arguments)."""
    return {
        "args": (lease.run_id, lease.claim, lease.session_id, FORMAT_VERSION),
        "task_id": lease.task_id,
        "queue": lease.queue,
        "serializer": "json",
        "ignore_result": True,
        "retry": False,
        "shadow": f"asm.run {lease.agent}",
        "argsrepr": f"(session={lease.session_id!r}, run={lease.run_id!r}, claim={lease.claim})",
        "kwargsrepr": "{}",
    }
