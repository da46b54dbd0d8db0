"""What the kernel says of processes: children, sessions, memory, and who carries a mark."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterable
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def pids() -> list[int]:
    """Return every process there is."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _fields(pid: int) -> list[str]:
    # what follows the last bracket are plain words: state, parent, group, session ...
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


class Table:
    """Who has whom started, as it is at one moment; zombies are not in it."""

    def __init__(self) -> None:
        self._children: dict[int, list[tuple[int, int]]] = {}
        for pid in pids():
            fields = _fields(pid)
            if len(fields) > 19 and fields[0] != "Z":
                self._children.setdefault(int(fields[1]), []).append((int(fields[19]), pid))

    def children(self, parent: int) -> list[int]:
        """Return the living children of a process, oldest first."""
        return [pid for _, pid in sorted(self._children.get(parent, []))]

    def descendants(self, root: int) -> list[int]:
        """Return all that a process has started, and what these have."""
        found = self.children(root)
        return found + [deeper for child in found for deeper in self.descendants(child)]


def command(pid: int) -> str:
    """Return a process's command line; empty when it is gone."""
    with contextlib.suppress(OSError):
        return (
            (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""


def is_alive(pid: int) -> bool:
    """Say whether a process lives and is no zombie."""
    fields = _fields(pid)
    return bool(fields) and fields[0] != "Z"


def is_stopped(pid: int) -> bool:
    """Say whether a process stands still by SIGSTOP, or is gone."""
    fields = _fields(pid)
    return not fields or fields[0] in "TZ"


def resident_bytes(pid: int) -> int:
    """Return how much memory a process occupies; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES
    return 0


def carriers(mark: str, beside: Collection[int] = ()) -> list[int]:
    """Return who has this text in its environment, as it was when the process was started."""
    wanted, found = mark.encode(), []
    for pid in pids():
        if pid in beside or not is_alive(pid):
            continue
        with contextlib.suppress(OSError):
            if wanted in (Path("/proc") / str(pid) / "environ").read_bytes():
                found.append(pid)
    return found


def send(number: signal.Signals, to: Iterable[int]) -> list[int]:
    """Send a signal to each that lives; return whom it reached."""
    reached = []
    for pid in to:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            reached.append(pid)
    return reached
