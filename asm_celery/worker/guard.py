"""The guard: a small process beside a worker that ends what the worker's death would leave behind.

Run without site packages, it imports nothing but the standard library and `process`, and stays near 10 MB.
It has a session of its own and ignores the signals that end workers: it ends when all who could write to it
are gone.  Its standard input is a pipe; a message is one line, short enough to be atomic among writers:

* ``watch PID START SILENCE_S``: an owner, told apart by its start time.  With a limit above 0 it is killed
  when it has sent no tick for so long, counted from its first tick.
* ``tick PID``: a sign of life.
* ``group PID PGID START TOKEN``: the process group, whose leader started at START, belongs to that owner, and
  so does whatever carries TOKEN in its environment.
* ``ended PGID``: forget it.
* ``burial TEXT``: how `burial` reaches the stores; a text of no white space, which only it reads.
* ``executor PID CHILD START NAME``: that owner's executor of this name lives in process CHILD, or the same.
* ``left NAME``: that executor holds nothing any more.

When an owner dies, its groups and carriers are killed, and then a `burial` is started for those of its
executors whose process has certainly ended: their runs need not wait until others have judged the silence.
At the end of the pipe the same is done for all owners.

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

import os
import select
import signal
import sys
import time
from collections.abc import Iterable

from asm_celery.worker.process import handle_of, has_ended, kill_group, send_kill, start_time, sweep

# The longest wait while somebody's silence counts.  Were it longer than a pause of the whole machine, a guard
# and an owner that both stood still would look like an owner that did.
LOOK_S = 0.5
# A turn that comes later than this was not scheduled: who was silent meanwhile may not have been.
LATE_S = 1.0
# The children of an owner die with it, by the kernel's signal; who lives longer is not buried.
DIE_S = 2.0
# The latest executors of an owner that are remembered: their names fit into one pipe.
EXECUTORS = 200
# The folder our package is in, and how a guard is started from there.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
PROGRAM = "import sys; sys.path.append(sys.argv[2]); from asm_celery.worker.guard import main; main()"
_CHUNK = 65_536


class Owner:
    """A process whose death ends its groups."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start
        self.silence_s = 0.0
        self.ticked_at: float | None = None
        self.groups: dict[int, tuple[int, str]] = {}
        # its executors: the process of each, and when that was started
        self.executors: dict[str, tuple[int, int]] = {}
        self.handle = handle_of(pid)
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
            send_kill(self.handle)
        elif not self.has_died():
            os.kill(self.pid, signal.SIGKILL)


class Guard:
    """Reads the pipe, watches the owners, kills what they leave."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""
        self._owners: dict[int, Owner] = {}
        self._burial = ""
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
            self._end(dead)
            self._judge(now, is_late=is_late)
        self._end(list(self._owners.values()))

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
            case ["burial", text]:
                self._burial = text
            case ["executor", pid, child, start, name]:
                executors = self._owner(int(pid), 0).executors
                executors[name] = (int(child), int(start))
                if len(executors) > EXECUTORS:
                    del executors[next(iter(executors))]
            case ["left", name]:
                for owner in self._owners.values():
                    owner.executors.pop(name, None)
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

    def _end(self, owners: list[Owner]) -> None:
        """End what these owners leave, and have it written what becomes of their runs."""
        groups = {pgid: told for owner in owners for pgid, told in owner.groups.items()}
        for pgid, (start, _) in groups.items():
            kill_group(pgid, start)
        sweep({token for _, token in groups.values()})
        executors = {name: of for owner in owners for name, of in owner.executors.items()}
        if self._burial and executors:
            ended = _wait_ended(executors)
            if ended:
                _start_burial(self._burial, ended)

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


def _wait_ended(executors: dict[str, tuple[int, int]]) -> list[str]:
    """Return the executors whose process has ended; those of children end a moment after their parent."""
    until = time.monotonic() + DIE_S
    while True:
        ended = [name for name, (pid, start) in executors.items() if has_ended(pid, start)]
        if len(ended) == len(executors) or time.monotonic() > until:
            return ended
        time.sleep(0.02)


def _start_burial(text: str, executors: Iterable[str]) -> None:
    """Start the program that writes their fate; what it must know is secret, so it reads it from a pipe."""
    read_end, write_end = os.pipe()
    # importable for it as for us; the rest of its path is its interpreter's own
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH", "")]))
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "asm_celery.worker.burial"],
            {**os.environ, "PYTHONPATH": path},
            file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0)],
        )
        os.write(write_end, " ".join([text, *executors]).encode())
    except OSError as cause:
        _say(f"the runs of a dead worker wait until it is judged silent ({cause})")
    finally:
        os.close(read_end)
        os.close(write_end)


def _is_dead(owner: Owner, ready: set[int]) -> bool:
    return owner.handle in ready if owner.handle is not None else owner.has_died()


def _say(text: str) -> None:
    """Tell the worker's log, unless that would block: a guard that waits guards nobody."""
    try:
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"asm guard: {text}\n".encode())
    except (OSError, ValueError):
        pass


def main() -> None:
    """Guard until the end of the pipe."""
    # Ctrl-C, a deploy and a lost terminal are the worker's to obey; the guard goes after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(sys.stdin.fileno(), False)
    Guard(sys.stdin.fileno()).serve()
