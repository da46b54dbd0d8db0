"""A worker's module with a guard from the start: ``celery -A tests.integration.guarded_worker worker``."""

from __future__ import annotations

import os
from typing import Any

from celery import signals

from asm_celery.worker.guard_link import die_with_parent, link
from workers.app import app, asm

__all__ = ["app", "asm"]

MAIN = os.getpid()
link().start()


@signals.worker_process_init.connect(weak=False)
def _tie(**_: Any) -> None:
    die_with_parent(MAIN)
