"""What agents leave behind besides the ledger: the thread they run in, and signs of life.

Both are written past all of our code, and read by the test.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.ledger import VARIABLE, Ledger

# A shell's processes are told by a variable of their environment, wherever they went.
TOKEN = "ZOO_TOKEN"


def leave_footprint(run_id: str) -> None:
    """Write which process and thread a run is in, and when that process was started."""
    pid = os.getpid()
    text = f"{pid} {threading.get_native_id()} {_started(pid)}"
    _beside(run_id, "footprint").write_text(text)


def leave_beat(run_id: str) -> None:
    """Write that a run lives."""
    with _beside(run_id, "beats").open("a") as beats:
        beats.write(f"{time.monotonic():.6f}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Where a run was entered."""

    pid: int
    thread: int
    started: str

    @property
    def is_there(self) -> bool:
        """True while the thread lives, in the process that it was entered in."""
        return _started(self.pid) == self.started and Path(f"/proc/{self.pid}/task/{self.thread}").exists()


def footprint(ledger: Ledger, run_id: str) -> Footprint:
    """Return where the run was entered last."""
    pid, thread, started = _path(ledger.path, run_id, "footprint").read_text().split()
    return Footprint(pid=int(pid), thread=int(thread), started=started)


def beats(ledger: Ledger, run_id: str) -> list[float]:
    """Return when the run showed that it lives, by the monotonic clock."""
    path = _path(ledger.path, run_id, "beats")
    lines = path.read_text().splitlines() if path.exists() else []
    return [float(line) for line in lines]


def is_left(ledger: Ledger, run_id: str) -> bool:
    """True when no code of the run executes any more: it was left, or its thread is gone."""
    if any(entry.run_id == run_id and entry.what == "leave" for entry in ledger.entries()):
        return True
    return not footprint(ledger, run_id).is_there


def alive_with(token: str) -> list[int]:
    """Return the processes that were started, at whatever remove, with the token in their environment."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0") and not _is_zombie(folder):
                    found.append(int(folder.name))
            except OSError:
                # it ended while we looked
                continue
    return found


def _beside(run_id: str, what: str) -> Path:
    return _path(Path(os.environ[VARIABLE]), run_id, what)


def _path(ledger: Path, run_id: str, what: str) -> Path:
    return ledger.parent / f"{run_id}.{what}"


def _is_zombie(folder: Path) -> bool:
    return _fields(folder)[0] == "Z"


def _started(pid: int) -> str:
    try:
        return _fields(Path(f"/proc/{pid}"))[19]
    except OSError:
        return "gone"


def _fields(folder: Path) -> list[str]:
    """Return what stands behind the name in `stat`: first the state, twentieth the time of its start."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
