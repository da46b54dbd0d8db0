"""``asm doctor``: one line a check, and what to do."""

from __future__ import annotations

from dataclasses import asdict

from rich.text import Text

from asm_celery.cli.call import Call
from asm_celery.cli.checks import Level, check_all
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import config_of
from asm_celery.cli.words import console

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def run(call: Call) -> Exit:
    """Print each check as it is done; UNAVAILABLE if any failed."""
    code = Exit.COMPLETED
    screen = console()
    for check in check_all(config_of(call)):
        if check.level is Level.FAIL:
            code = Exit.UNAVAILABLE
        call.answer("check", asdict(check))
        if not call.is_json:
            said = ": ".join(filter(None, [check.message, check.remedy]))
            line = Text.assemble((f"{check.level:<4}", _COLOURS[check.level]), f"  {check.name:<11}  {said}")
            screen.print(line, soft_wrap=True)
    return code
