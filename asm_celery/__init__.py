"""Sessions of runs on Celery, Redis and SQL: strict order, one limit, live events, true stops.

The names below are the public face.  They are imported when they are first used, so that
``import asm_celery`` is quick and starts nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = {
    "AgentSessions": "asm_celery.sessions",
    "SessionServer": "asm_celery.server",
    "ConcurrencyLimiter": "asm_celery.limiter",
    "ControlOperations": "asm_celery.operations",
    "Config": "asm_celery.config",
    "Session": "asm_celery.model",
    "Run": "asm_celery.model",
    "RunResult": "asm_celery.model",
    "Event": "asm_celery.model",
    "Subscription": "asm_celery.events.subscription",
    "SessionStatusReport": "asm_celery.model",
}

__all__ = [
    "AgentSessions",
    "ConcurrencyLimiter",
    "Config",
    "ControlOperations",
    "Event",
    "Run",
    "RunResult",
    "Session",
    "SessionServer",
    "SessionStatusReport",
    "Subscription",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("asm_celery.errors")
    if name in _FACE:
        return getattr(import_module(_FACE[name]), name)
    raise AttributeError(f"module 'asm_celery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
