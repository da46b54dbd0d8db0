"""`ShellAgent`: a real command as an agent, streamed line by line, with nothing left behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asm_celery.errors import InvalidInput, of_code
from asm_celery.worker.context import RunContext
from workers.process_group import LADDER, Command, ProcessGroup

TAIL_CHARACTERS: Final = 16_384


class ShellAgent:
    """Runs the command of its input; stdout and stderr are streamed together.

    Returns ``{"exit_code": 0, "output": its last 16 KiB, "duration_ms": n}``.

    Args:
        ladder: how a command is asked to end.
    """

    def __init__(self, ladder: Sequence[tuple[signal.Signals, float]] = LADDER) -> None:
        self._ladder = ladder

    def __call__(self, ctx: RunContext, given: Any) -> dict[str, Any]:
        """Run it.

        Raises:
            AsmError: ``command_failed`` with the exit code in its details, or ``command_timeout``.
            StopRun: a stop was asked for; the command was led down the ladder first.
        """
        command = command_of(given)
        began = time.monotonic()
        tail = ""
        with ProcessGroup(command, self._ladder) as group:
            ctx.on_stop(group.stop)
            for line in group.lines():
                tail = (tail + line)[-TAIL_CHARACTERS:]
                ctx.emit("message_streamed", {"content": line})
        ctx.check()
        result = {
            "exit_code": group.exit_code,
            "output": tail,
            "duration_ms": round((time.monotonic() - began) * 1000),
        }
        if group.is_overdue:
            raise of_code(
                "command_timeout", f"the command took longer than {command.timeout:g} s", details=result
            )
        if group.exit_code != 0:
            raise of_code(
                "command_failed", f"the command ended with exit code {group.exit_code}", details=result
            )
        return result


def command_of(given: Any) -> Command:
    """Read a run's input: a line for ``/bin/sh``, or a map of command (line or list), cwd, env, timeout.

    Raises:
        InvalidInput: anything else; says which field and what it must be.
    """
    fields = {"command": given} if isinstance(given, str) else given
    if not isinstance(fields, dict) or not fields.keys() <= {"command", "cwd", "env", "timeout"}:
        raise InvalidInput("shell takes a command line, or a map of command, cwd, env and timeout")
    command, cwd, env, timeout = (fields.get(name) for name in ("command", "cwd", "env", "timeout"))
    if isinstance(command, str) and command.strip():
        argv = ["/bin/sh", "-c", command]
    elif isinstance(command, list) and command and all(isinstance(part, str) for part in command):
        argv = command
    else:
        raise InvalidInput(f"command must be a line or a list of strings, got {command!r:.80}")
    if cwd is not None and not (isinstance(cwd, str) and Path(cwd).is_dir()):
        raise InvalidInput(f"cwd must be a folder of the worker, got {cwd!r:.200}")
    if env is not None and not (
        isinstance(env, dict) and all(isinstance(value, str) for value in env.values())
    ):
        raise InvalidInput("env must be a map of strings")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
        raise InvalidInput(f"timeout must be a number of seconds, got {timeout!r:.80}")
    return Command(argv=argv, cwd=cwd, env=env or {}, timeout=timeout)
