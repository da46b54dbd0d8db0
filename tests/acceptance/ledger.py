"""The agents' own book: a line when user code is entered and one when it is left, past all of our code.

Every process appends to one file with O_APPEND, so lines never mix; the times are of the host's monotonic
clock, which all processes share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from asm_celery.worker.context import RunContext

VARIABLE = "ASM_TEST_LEDGER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line: `what` is ``enter`` or ``leave``, `at` seconds of the monotonic clock."""

    at: float
    what: str
    session_id: str
    run_id: str
    attempt: int
    pid: int

    @classmethod
    def read(cls, line: str) -> Self:
        """Read a line."""
        at, what, session_id, run_id, attempt, pid = line.split()
        return cls(
            at=float(at),
            what=what,
            session_id=session_id,
            run_id=run_id,
            attempt=int(attempt),
            pid=int(pid),
        )


@contextmanager
def noted(ctx: RunContext) -> Iterator[None]:
    """Write that the agent is entered, and at the end, however it comes, that it is left."""
    _write("enter", ctx)
    try:
        yield
    finally:
        _write("leave", ctx)


def _write(what: str, ctx: RunContext) -> None:
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    line = f"{time.monotonic():.6f} {what} {ctx.session.session_id} {ctx.run.run_id} {ctx.attempt} {os.getpid()}\n"
    # opened each time: no descriptor survives a fork, and one write is one line
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Ledger:
    """The book as a test reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, session_id: str | None = None) -> Sequence[Entry]:
        """Return all lines by time, or those of one session."""
        if not self.path.exists():
            return []
        lines = map(Entry.read, self.path.read_text().splitlines())
        wanted = (entry for entry in lines if session_id in (None, entry.session_id))
        return sorted(wanted, key=lambda entry: entry.at)

    def entered(self, session_id: str | None = None) -> list[str]:
        """Return the run ids in the order in which their agents were entered."""
        return [entry.run_id for entry in self.entries(session_id) if entry.what == "enter"]

    def most_at_once(self, session_id: str | None = None) -> int:
        """Return how many agents were inside at once, at most."""
        inside = most = 0
        for entry in self.entries(session_id):
            inside += 1 if entry.what == "enter" else -1
            most = max(most, inside)
        return most
