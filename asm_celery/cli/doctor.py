"""``asm doctor``: one line a check, and what to do; with ``--fix`` it mends what differs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from rich.text import Text

from asm_celery.cli.call import Call
from asm_celery.cli.checks import Level, check_all
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import config_of
from asm_celery.cli.words import console, plain
from asm_celery.dispatch import CeleryDispatcher
from asm_celery.runtime import Runtime
from asm_celery.sessions import AgentSessions

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
# Mending one difference may uncover another: a run that is written again has a session that is not.
_ROUNDS: Final = 5


def run(call: Call, *, fix: bool = False, yes: bool = False) -> Exit:
    """Print each check as it is done; UNAVAILABLE if any failed, TRY_AGAIN if `fix` left differences."""
    code = Exit.COMPLETED
    screen = console()
    for check in check_all(_runtime(call)):
        if check.level is Level.FAIL:
            code = Exit.UNAVAILABLE
        call.answer("check", asdict(check))
        if not call.is_json:
            said = ": ".join(filter(None, [check.message, check.remedy]))
            line = Text.assemble((f"{check.level:<4}", _COLOURS[check.level]), f"  {check.name:<11}  {said}")
            screen.print(line, soft_wrap=True)
    return _fix(call, yes) if fix and code is Exit.COMPLETED else code


def _fix(call: Call, yes: bool) -> Exit:
    """Mend what two looks saw alike, until two looks see nothing; safe while everything runs."""
    runtime = _runtime(call)
    try:
        found = runtime.comparison.confirmed()
        if not found:
            return Exit.COMPLETED
        if not call.agrees(
            f"{len(found)} differences will be mended: Redis is made to say what SQL says", yes
        ):
            return Exit.REFUSED
        for _ in range(_ROUNDS):
            for one in found:
                done = runtime.comparison.mend(one)
                shown = {"kind": one.kind, "subject": one.subject, "where": one.where, "done": done}
                call.answer("mended", shown)
                call.text(plain(f"{done:<20}  {one.kind:<21}  {one.subject}  {one.where}".rstrip()))
            found = runtime.comparison.confirmed()
            if not found:
                return Exit.COMPLETED
        call.talk(f"{len(found)} differences are left: look again in some seconds")
        return Exit.TRY_AGAIN
    finally:
        runtime.close()


def _runtime(call: Call) -> Runtime:
    sessions = AgentSessions(config_of(call))
    return Runtime(sessions.config, sessions.registry, CeleryDispatcher(lambda: sessions.celery_app))
