"""``asm worker``: become ``celery worker`` for a module, with this invocation's settings."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import click

from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import config_of

_SHIPPED = "workers.app"


def run(
    call: Call, *, app: str | None, pool: str, concurrency: int | None, celery_options: tuple[str, ...]
) -> Exit:
    """Replace this process by the worker, so that signals and process ids are Celery's own.

    Raises:
        click.UsageError: no module was named, and there is no `workers.app` here.
        ValidationError: a setting is wrong.
    """
    config = config_of(call)
    module = app or _shipped()
    # fmt: off
    command = [
        sys.executable, "-m", "celery", "-A", module, "worker", "--pool", pool, "--loglevel", config.log_level,
        *(["--concurrency", str(concurrency)] if concurrency else []), *celery_options,
    ]
    # fmt: on
    given = {f"ASM_{name.upper()}": value for name, value in call.settings.items()}
    call.answer("worker", {"command": command})
    call.talk(" ".join(command))
    os.execve(command[0], command, {**os.environ, **given})  # noqa: S606 - a list, and no shell
    raise AssertionError("unreachable")


def _shipped() -> str:
    # Celery will look in the present folder too
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.util.find_spec(_SHIPPED)
    except ImportError:
        found = None
    if found is None:
        raise click.UsageError(
            f"name your worker module with -A (asm = AgentSessions.from_env(), agents, app = asm.celery_app): "
            f"there is no {_SHIPPED} here"
        )
    return _SHIPPED
