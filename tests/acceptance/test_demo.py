"""The demo, as ``./dev demo`` runs it: it does what it says, and leaves nothing, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.command import PATIENCE_S, PROGRAM, Command
from tests.waiting import wait_until
from tests.workers import ROOT

MARK = "DEMO_TEST_MARK"


class Demo:
    """The demo as a process whose descendants can be found, wherever they went: they inherit a mark."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={uuid4().hex}"
        self.process = subprocess.Popen(
            [*PROGRAM, "--json", "demo"],
            env={**Command({"ASM_REDIS_URL": "redis://not.for.it"}).env, MARK: self._mark.partition("=")[2]},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def living(self) -> list[str]:
        """Return the command lines of all that is alive of it."""
        return [line for line in map(self._command_line, Path("/proc").glob("[0-9]*")) if line]

    def await_output(self, text: str) -> None:
        """Read its stdout until a line has this text."""
        assert self.process.stdout is not None
        assert any(text in line for line in self.process.stdout), f"the demo ended before {text!r}"

    def end(self) -> tuple[str, str]:
        """Wait for its end; returns what it wrote."""
        try:
            return self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()

    def _command_line(self, process: Path) -> str:
        try:
            if self._mark.encode() not in (process / "environ").read_bytes().split(b"\0"):
                return ""
            # a process that has ended and was not reaped has none
            return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""


@pytest.fixture
def demo() -> Iterator[Demo]:
    """A demo that has just been started; afterwards no process of it is alive and no folder is left."""
    if not sys.platform.startswith("linux"):
        pytest.skip("processes are found in /proc")
    started = Demo()
    # a process in the middle of exec has no environment to be known by
    wait_until(started.living, description="its first process is there")
    yield started
    started.process.kill()
    started.process.wait()
    # what it killed at the last moment may take another to be gone
    wait_until(lambda: not started.living(), description="no process of the demo is alive")
    assert [] == list((ROOT / ".asm").glob(f"demo-{started.process.pid}-*"))


def test_every_run_ends_as_the_story_says(demo: Demo) -> None:
    """Exit code 0; the runs read back from SQL show all four ways to end, and every event was seen live."""
    out, err = demo.end()

    assert 0 == demo.process.returncode, err
    objects = [json.loads(line) for line in out.splitlines()]
    runs = [found for found in objects if found["object"] == "run"]
    assert [run["expected"] for run in runs] == [run["status"] for run in runs]
    assert {"completed", "failed", "cancelled", "interrupted"} == {run["status"] for run in runs}
    assert len({run["session_id"] for run in runs}) >= 4
    for session in {run["session_id"] for run in runs}:
        sequences = [
            found["sequence"]
            for found in objects
            if found["object"] == "event" and found["session_id"] == session
        ]
        assert list(range(1, len(sequences) + 1)) == sequences


def test_ctrl_c_in_the_middle_leaves_nothing(demo: Demo) -> None:
    """Commands, server and worker end with it, and its folder goes."""
    demo.await_output('"message_streamed"')

    demo.process.send_signal(signal.SIGINT)
    demo.end()

    assert 130 == demo.process.returncode


def test_sigterm_while_it_starts_leaves_nothing(demo: Demo) -> None:
    """The server that was just started ends too."""
    wait_until(lambda: "valkey" in " ".join(demo.living()), description="its server was started")

    demo.process.send_signal(signal.SIGTERM)
    demo.end()

    assert 143 == demo.process.returncode
