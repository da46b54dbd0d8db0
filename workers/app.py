"""The worker's module: ``celery -A workers.app worker``.

A user's own module looks the same: settings from the environment, agents registered, `app` for Celery.
"""

from __future__ import annotations

from asm_celery import AgentSessions
from workers import agents

asm = AgentSessions.from_env()
agents.register(asm)
app = asm.celery_app
