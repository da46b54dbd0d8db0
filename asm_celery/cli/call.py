"""One invocation of ``asm``: what was said for all commands, and the two ways to say something back.

stdout is the answer: text for people, with ``--json`` one object a line, whose ``object`` says what it is.
stderr is the talk: ``asm: ...``, with ``--json`` objects too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

import click

from asm_celery.cli.exits import Exit, of_error
from asm_celery.errors import AsmError


@dataclass(slots=True, kw_only=True)
class Call:
    """One invocation.

    Attributes:
        settings: those of `Config` that options gave; the others come from the environment.
        is_json: True with ``--json``.
    """

    settings: dict[str, str] = field(default_factory=dict)
    is_json: bool = False

    def answer(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one JSON object to stdout; does nothing without ``--json``, where the caller writes text."""
        if self.is_json:
            _write(sys.stdout, _line(kind, values))

    def text(self, text: str) -> None:
        """Write a line of text to stdout, as it is; does nothing with ``--json``."""
        if not self.is_json:
            _write(sys.stdout, text)

    def talk(self, text: str) -> None:
        """Say something that is not the answer; silent with ``--json``."""
        if not self.is_json:
            _write(sys.stderr, f"asm: {text}")

    def refuse(self, error: AsmError) -> Exit:
        """Say an error on stderr and return the exit code it stands for."""
        code = of_error(error)
        return self.complain(error.message, code, error.to_map())

    def complain(self, message: str, code: Exit, values: Mapping[str, Any]) -> Exit:
        """Say on stderr why the command ends with this code; returns the code."""
        if self.is_json:
            _write(sys.stderr, _line("error", {**values, "message": message, "exit_code": int(code)}))
        else:
            self.talk(message)
        return code

    def agrees(self, what: str, yes: bool) -> bool:
        """Say what a command will touch, and ask unless ``--yes`` was given.

        Raises:
            click.UsageError: there is nobody to ask.
        """
        if not yes and (self.is_json or not sys.stdin.isatty()):
            raise click.UsageError(f"{what}; add --yes to do it")
        self.talk(what)
        return yes or click.confirm("asm: do it?", err=True)


def _write(stream: TextIO, text: str) -> None:
    # a lone surrogate is legal in JSON and in a run's output, and no UTF-8
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _line(kind: str, values: Mapping[str, Any]) -> str:
    shown = {key: None if value == math.inf else value for key, value in values.items()}
    return json.dumps({"object": kind, **shown}, default=str)
