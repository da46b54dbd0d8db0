"""A worker whose consumer takes no message until it is started anew: the first start leaves a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import signals

from asm_celery import AgentSessions
from asm_celery.worker.context import RunContext

MARK = Path(os.environ["ASM_TEST_MARK"])
asm = AgentSessions.from_env()
app = asm.celery_app


@asm.agent
def echo(ctx: RunContext, given: Any) -> Any:
    """Return the input."""
    return given


@signals.worker_ready.connect
def turn_deaf(sender: Any, **_: Any) -> None:
    """Stop consuming, as a consumer does that lost its connection and does not know."""
    if not MARK.exists():
        MARK.touch()
        sender.task_consumer.cancel()
