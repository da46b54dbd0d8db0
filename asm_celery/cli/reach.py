"""Reach the installation that an invocation means: its settings, its `AgentSessions`, its warnings."""

from __future__ import annotations

import json
import logging

from asm_celery.cli.call import Call
from asm_celery.config import Config
from asm_celery.sessions import AgentSessions


def config_of(call: Call) -> Config:
    """Return the settings: options first, then the environment; from now on warnings are talk."""
    warn_by(call)
    return Config(**call.settings)


def warn_by(call: Call) -> None:
    """Let the warnings of every library be talk."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if call.is_json else logging.Formatter("asm: %(message)s"))
    logging.getLogger().handlers = [handler]


def sessions_of(call: Call) -> AgentSessions:
    """Return the sessions of that installation; a context manager, connects at first use."""
    return AgentSessions(config_of(call))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        shown = {"object": "log", "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(shown)
