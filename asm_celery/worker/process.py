"""Processes as others may end them: told apart by when they were started, found by marks, killed by handles.

The standard library only: the guard imports it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Iterable

# Sweeps of the process table before giving up on something that forks faster than it is found.
ROUNDS = 50
_HAS_HANDLES = hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")


def kill_group(pgid: int, start: int) -> None:
    """Kill a process group, unless its number was given to another; see the argument in `guard`."""
    try:
        is_anothers = start_time(pgid) not in (0, start) if start else os.getsid(pgid) != pgid
    except OSError:
        # no leader any more: whoever is in the group is of it
        is_anothers = False
    try:
        if not is_anothers:
            os.killpg(pgid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # empty; or of another user's processes only, as after sudo
        return


def sweep(tokens: Iterable[str]) -> None:
    """Kill every process that carries one of the tokens in its environment, as it was when it was started.

    Needs /proc; does nothing elsewhere.  Not found is what has dropped its environment, runs as another user,
    or forks away faster than `ROUNDS` passes.

    Guarantee: two passes in a row found nothing new.  One is not enough: a process may pass the child it
    leaves behind, whose number is lower, while the table is read.
    """
    wanted = [token.encode() for token in tokens]
    known: set[int] = set()
    clean = 0
    for _ in range(ROUNDS):
        found = _sweep_once(wanted) if wanted else known
        clean = clean + 1 if found <= known else 0
        if clean == 2:
            return
        known |= found


def start_time(pid: int) -> int:
    """Return when a process was started, in ticks since boot; 0 if there is no such process or no /proc."""
    # what follows the last bracket are numbers; the command's name before it may be anything
    words = _read_proc(pid, "stat").rpartition(b")")[2].split()
    return int(words[19]) if len(words) > 19 else 0


def handle_of(pid: int) -> int | None:
    """Return a handle of a process that stays its own when its number is reused; None if there is none."""
    if not _HAS_HANDLES:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def send_kill(handle: int) -> bool:
    """Send SIGKILL through a handle; False when its process has ended or may not be killed by us."""
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError as cause:
        return cause.errno not in (errno.ESRCH, errno.EPERM)
    return True


def has_ended(pid: int, start: int) -> bool:
    """Say whether the process that was started at `start` executes nothing any more, reaped or not.

    When in doubt, as without handles for one that waits to be reaped, it has not.
    """
    handle = handle_of(pid)
    if handle is None:
        return _is_free(pid) or _is_anothers(pid, start)
    try:
        # asked after the handle was opened: the handle is of whoever has the number now
        return _is_anothers(pid, start) or bool(select.select([handle], [], [], 0)[0])
    finally:
        os.close(handle)


def _is_anothers(pid: int, start: int) -> bool:
    return start > 0 and start_time(pid) not in (0, start)


def _is_free(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _sweep_once(wanted: list[bytes]) -> set[int]:
    """Kill the carriers seen in one pass; return their numbers."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - pathlib takes 10 ms
    except OSError:
        return set()
    found, blank = set(), []
    for pid in pids:
        environment = _read_proc(pid, "environ")
        if not environment:
            blank.append(pid)
        elif any(token in environment for token in wanted) and _kill_carrier(pid, wanted):
            found.add(pid)
    # a process in the middle of exec has no environment for a moment
    return found | {pid for pid in blank if _read_proc(pid, "environ") and _kill_carrier(pid, wanted)}


def _kill_carrier(pid: int, wanted: list[bytes]) -> bool:
    handle = handle_of(pid)
    if handle is None:
        return False
    try:
        environment = _read_proc(pid, "environ")
        return any(token in environment for token in wanted) and send_kill(handle)
    finally:
        os.close(handle)


def _read_proc(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return b""
