"""`main`: parse, call, and end with the right exit code and one line that says why."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from asm_celery.cli.call import Call
from asm_celery.cli.commands import asm
from asm_celery.cli.exits import Exit
from asm_celery.errors import AsmError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; see `exits` for what with."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(int(run(given)))


def run(arguments: list[str]) -> Exit:
    """Run one command and return what to exit with."""
    # an error of the options' own is met before --json is
    call = Call(is_json="--json" in arguments)
    try:
        code = Exit(asm.main(arguments, prog_name="asm", standalone_mode=False, obj=call) or 0)
        sys.stdout.flush()
    except click.UsageError as refused:
        where = refused.ctx.command_path if refused.ctx else "asm"
        hint = f"{refused.format_message()} (see `{where} --help`)"
        return call.complain(hint, Exit.USAGE, {"code": "usage"})
    except click.ClickException as refused:
        return call.complain(refused.format_message(), Exit.USAGE, {"code": "usage"})
    except AsmError as error:
        return call.refuse(error)
    except (KeyboardInterrupt, click.Abort):
        return Exit.CTRL_C
    except BrokenPipeError:
        # whoever read our answer has read enough; the interpreter's own flush must not complain
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.COMPLETED
    return code
