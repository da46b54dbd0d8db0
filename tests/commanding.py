"""Commands that do not want to end, the processes of them, and a process that owns some."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any, Self
from uuid import uuid4

import psutil

from tests.waiting import wait_until
from tests.workers import ROOT

WORD = "TEST_WORD"
# A pipeline, a child in the background and one that left the group, all deaf to what can be ignored.
STUBBORN = """
trap '' INT TERM HUP
(sleep 600 | cat) &
setsid sh -c 'sleep 600; :' >/dev/null 2>&1 &
sleep 600 | cat
"""
STUBBORN_PROCESSES = 8

_LOOP = """
import sys
from asm_celery.worker.guard_link import die_with_parent, link
from tests.commanding import *
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except SyntaxError:
        exec(line)
        print("None", flush=True)
"""


class Word:
    """A word of its own in the environment of a command, by which its processes are found."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text or uuid4().hex

    @property
    def env(self) -> dict[str, str]:
        """What to add to the command's environment."""
        return {WORD: self.text}

    def carriers(self) -> list[psutil.Process]:
        """Its living processes."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(WORD) == self.text and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait_begun(self, count: int = STUBBORN_PROCESSES) -> None:
        """Wait until so many of its processes live."""
        wait_until(
            lambda: len(self.carriers()) >= count, description=f"{count} processes of the command live"
        )

    def wait_gone(self) -> None:
        """Wait until none of its processes lives."""
        wait_until(lambda: not self.carriers(), description="no process of the command lives")


class Owner:
    """A process that does, line by line, what it is told in Python; `link` and this module are in its scope."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def do(self, line: str) -> Any:
        """Have it do that; returns the value of an expression."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the owner has ended"
        return eval(answer)

    def tell(self, line: str) -> None:
        """Have it do something that it does not come back from."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def guard(self) -> psutil.Process:
        """Its guard, started when it is not."""
        self.do("link().start()")
        (guard,) = (
            one for one in psutil.Process(self.pid).children() if "guard.py" in " ".join(one.cmdline())
        )
        return guard

    def run(self, script: str = STUBBORN) -> Word:
        """Have it start a command and come back."""
        word = Word()
        self.do(f"command({script!r}, {word.text!r})")
        return word

    def is_alive(self) -> bool:
        """Say so."""
        return self._process.poll() is None

    def end(self) -> None:
        """Have it end in good order."""
        self._process.stdin.close()
        self._process.wait(20)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


_running: list[Any] = []


def command(script: str, word: str) -> None:
    """Start a command in this process and let it run."""
    # only an owner needs it
    from workers.process_group import LADDER, Command, ProcessGroup  # noqa: PLC0415

    group = ProcessGroup(Command(argv=["/bin/sh", "-c", script], env={WORD: word}), LADDER)
    _running.append(group.__enter__())


def forked(script: str, word: str) -> int:
    """Start a command in a forked child of this process, and return the child."""
    pid = os.fork()
    if pid == 0:
        command(script, word)
        while True:
            with contextlib.suppress(BaseException):
                os.read(os.pipe()[0], 1)
    return pid


def ticking(period_s: float) -> None:
    """Give signs of life from now on."""
    import threading  # noqa: PLC0415

    from asm_celery.worker.guard_link import link  # noqa: PLC0415

    def tick() -> None:
        while True:
            link().tick()
            threading.Event().wait(period_s)

    threading.Thread(target=tick, daemon=True).start()
