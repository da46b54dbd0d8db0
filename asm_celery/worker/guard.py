"""The guard: a small process beside a worker that ends what the worker's death would leave behind.

Run by path, ``python -I -S guard.py``, it imports nothing but the standard library and stays near 10 MB.
It has a session of its own and ignores the signals that end workers: it ends when all who could write to it
are gone.  Its standard input is a pipe; a message is one line, short enough to be atomic among writers:

* ``watch PID START SILENCE_S``: an owner, told apart by its start time.  With a limit above 0 it is killed
  when it has sent no tick for so long, counted from its first tick.
* ``tick PID``: a sign of life.
* ``group PID PGID START TOKEN``: the process group, whose leader started at START, belongs to that owner, and
  so does whatever carries TOKEN in its environment.
* ``ended PGID``: forget it.

When an owner dies, its groups and carriers are killed; at the end of the pipe, all of them.

Why no stranger is hit.  A group's number is not given away while any member or the unreaped leader exists.
While the owner lives, it does not reap the leader before it has said ``ended``, and the guard kills nothing
of it.  After its death another may reap the leader, so the number could belong to a new group; then a leader
exists, and its start time is not the one that was told.  If no leader exists, the number is either kept by
members of our group or free.  What is left is that all our members end and 2^15 or more processes are started
between that look and the kill, microseconds later.  Where start times are not known (no /proc), the guard only
acts at once and asks that the leader leads its session.  Carriers are killed through a process handle that was
opened before their environment was read, so a reused number cannot be hit.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from collections.abc import Iterable

# The longest wait while somebody's silence counts.  Were it longer than a pause of the whole machine, a guard
# and an owner that both stood still would look like an owner that did.
LOOK_S = 0.5
# A turn that comes later than this was not scheduled: who was silent meanwhile may not have been.
LATE_S = 1.0
# Sweeps of the process table before giving up on something that forks faster than it is found.
ROUNDS = 50
_CHUNK = 65_536
_HAS_HANDLES = hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")


class Owner:
    """A process whose death ends its groups."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start
        self.silence_s = 0.0
        self.ticked_at: float | None = None
        self.groups: dict[int, tuple[int, str]] = {}
        self.handle = _handle(pid)
        if self.handle is not None and start and start_time(pid) != start:
            # its number is another's by now
            os.close(self.handle)
            self.handle = None

    def has_died(self) -> bool:
        """Say so without a handle: where there are none, and for an owner that was dead when it was told."""
        if self.start:
            return start_time(self.pid) != self.start
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def kill(self) -> None:
        """Kill it, and nobody who took over its number."""
        if self.handle is not None:
            _send_kill(self.handle)
        elif not self.has_died():
            os.kill(self.pid, signal.SIGKILL)


class Guard:
    """Reads the pipe, watches the owners, kills what they leave."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""
        self._owners: dict[int, Owner] = {}
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def serve(self) -> None:
        """Return at the end of the pipe, when nothing is left to guard."""
        seen_at = time.monotonic()
        is_open = True
        while is_open:
            wait_s = self._wait_s()
            ready = {fd for fd, _ in self._poll.poll(None if wait_s is None else wait_s * 1000)}
            now = time.monotonic()
            is_late = wait_s is not None and now - seen_at > wait_s + LATE_S
            seen_at = now
            # Who is dead is asked before the pipe is read: its last words are in the pipe by then.
            dead = [owner for owner in self._owners.values() if _is_dead(owner, ready)]
            is_open = self._read()
            for owner in dead:
                self._forget(owner)
            _bury(dead)
            self._judge(now, is_late=is_late)
        _bury(self._owners.values())

    def _wait_s(self) -> float | None:
        is_counting = any(owner.silence_s or owner.handle is None for owner in self._owners.values())
        return LOOK_S if is_counting else None

    def _read(self) -> bool:
        """Obey all messages there are; False at the end of the pipe."""
        while True:
            try:
                chunk = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                return True
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                try:
                    self._obey(line.decode().split())
                except ValueError as cause:
                    _say(f"a message was not understood: {line[:80]!r} ({cause})")
            if not chunk:
                return False

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["tick", pid]:
                owner = self._owners.get(int(pid))
                if owner is not None:
                    owner.ticked_at = time.monotonic()
            case ["watch", pid, start, silence_s]:
                owner = self._owner(int(pid), int(start))
                owner.silence_s = float(silence_s)
                owner.ticked_at = None
            case ["group", pid, pgid, start, token]:
                # 0 is our own group, and 1 would mean every process there is
                if int(pgid) > 1:
                    self._owner(int(pid), 0).groups[int(pgid)] = (int(start), token)
            case ["ended", pgid]:
                for owner in self._owners.values():
                    owner.groups.pop(int(pgid), None)
            case _:
                raise ValueError("no such message")

    def _owner(self, pid: int, start: int) -> Owner:
        owner = self._owners.get(pid)
        if owner is None:
            owner = self._owners[pid] = Owner(pid, start)
            if owner.handle is not None:
                self._poll.register(owner.handle, select.POLLIN)
        return owner

    def _forget(self, owner: Owner) -> None:
        del self._owners[owner.pid]
        if owner.handle is not None:
            self._poll.unregister(owner.handle)
            os.close(owner.handle)
            owner.handle = None

    def _judge(self, now: float, *, is_late: bool) -> None:
        """Kill who has been silent too long; its groups follow when it is seen dead."""
        for owner in self._owners.values():
            if not owner.silence_s or owner.ticked_at is None:
                continue
            if is_late:
                owner.ticked_at = max(owner.ticked_at, now)
            elif now - owner.ticked_at > owner.silence_s:
                owner.kill()
                owner.silence_s = 0.0
                _say(f"process {owner.pid} gave no sign of life for {now - owner.ticked_at:.1f} s: killed")


def kill_group(pgid: int, start: int) -> None:
    """Kill a process group, unless its number was given to another; see the module's argument."""
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


def _bury(owners: Iterable[Owner]) -> None:
    groups = {pgid: told for owner in owners for pgid, told in owner.groups.items()}
    for pgid, (start, _) in groups.items():
        kill_group(pgid, start)
    sweep({token for _, token in groups.values()})


def _is_dead(owner: Owner, ready: set[int]) -> bool:
    return owner.handle in ready if owner.handle is not None else owner.has_died()


def _sweep_once(wanted: list[bytes]) -> set[int]:
    """Kill the carriers seen in one pass; return their numbers."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as above
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
    handle = _handle(pid)
    if handle is None:
        return False
    try:
        environment = _read_proc(pid, "environ")
        return any(token in environment for token in wanted) and _send_kill(handle)
    finally:
        os.close(handle)


def _handle(pid: int) -> int | None:
    """Return a handle of a process that stays its own when its number is reused; None if there is none."""
    if not _HAS_HANDLES:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _send_kill(handle: int) -> bool:
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError as cause:
        return cause.errno not in (errno.ESRCH, errno.EPERM)
    return True


def _read_proc(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - pathlib takes 10 ms
            return file.read()
    except OSError:
        return b""


def _say(text: str) -> None:
    """Tell the worker's log, unless that would block: a guard that waits guards nobody."""
    try:
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"asm guard: {text}\n".encode())
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    # Ctrl-C, a deploy and a lost terminal are the worker's to obey; the guard goes after it.
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, signal.SIG_IGN)
    os.set_blocking(sys.stdin.fileno(), False)
    Guard(sys.stdin.fileno()).serve()
