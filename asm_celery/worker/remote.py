"""Which of Celery's remote commands a worker of ours answers: those that look, and the stops of a run.

Whoever reaches the broker can send them all.  Ending a worker, changing its pool, its queues or its limits is
for those who run the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from celery.worker.control import Panel

from asm_celery.dispatch import TASK

log = logging.getLogger("asm_celery.worker")

REFUSED: Final = (
    "shutdown", "pool_restart", "pool_grow", "pool_shrink", "autoscale", "add_consumer", "cancel_consumer",
    "rate_limit", "time_limit", "election", "revoke_by_stamped_headers", "memsample", "memdump", "objgraph",
)  # fmt: skip


def _ours_refuses(name: str, known: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that a worker of ours refuses, and that another's does as before."""

    def command(state: Any, *args: Any, **kwargs: Any) -> Any:
        task = state.app.tasks.get(TASK)
        if task is None or not task.life.is_ours:
            return known(state, *args, **kwargs)
        log.warning("the remote command %s was refused", name)
        return {"error": f"{name} is not for the broker: use the machine's own tools, such as SIGTERM"}

    command.is_ours = True  # type: ignore[attr-defined]
    return command


def install() -> None:
    """Put the refusals before Celery's commands, in this process."""
    for name in REFUSED:
        known = Panel.data.get(name)
        if known is not None and not hasattr(known, "is_ours"):
            Panel.data[name] = _ours_refuses(name, known)
