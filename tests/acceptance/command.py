"""``asm`` as people and scripts run it: a process with the settings of an installation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nursery import ROOT, program

PROGRAM = [sys.executable, "-m", "asm_celery.cli"]
# met only by a command that hangs
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The lines of stdout as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        """The only line of stdout as JSON."""
        (only,) = self.objects
        return only

    @property
    def error(self) -> dict[str, Any]:
        """The last line of stderr as JSON."""
        last: dict[str, Any] = json.loads(self.err.splitlines()[-1])
        return last


class Command:
    """The command with the settings of an installation."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASM_")}
        self.env = {**inherited, **settings}

    def __call__(self, *arguments: str, given: str = "", folder: Path = ROOT) -> Answer:
        """Run it to its end; `given` is its stdin."""
        env = {**self.env, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            program("asm_celery.cli", *arguments, env=env),
            input=given,
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Answer(code=ended.returncode, out=ended.stdout, err=ended.stderr)

    def start(self, *arguments: str) -> Started:
        """Start it, as from a terminal: what is pressed there reaches it and nothing else."""
        return Started(
            subprocess.Popen(
                program("asm_celery.cli", *arguments, env=self.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.env},
                cwd=ROOT,
                text=True,
            )
        )


class Started:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def press_ctrl_c(self) -> None:
        """Send what the terminal sends."""
        self._process.send_signal(signal.SIGINT)

    def next_word(self) -> str:
        """Wait for the next line it says on stderr."""
        assert self._process.stderr is not None
        return self._process.stderr.readline()

    def end(self) -> Answer:
        """Wait for its end."""
        try:
            out, err = self._process.communicate(timeout=PATIENCE_S)
        finally:
            self._process.kill()
        return Answer(code=self._process.returncode, out=out, err=err)
