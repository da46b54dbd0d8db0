"""`GuardLink`: this process's line to its guard, and how a forked child is tied to its parent's life.

What the guard does is told in `guard`.  Nothing here raises or waits: a guard that cannot be had is logged
once, and everything works without, except that a killed worker leaves its commands behind.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Final

from asm_celery.config import Config
from asm_celery.worker import guard
from asm_celery.worker.process import start_time

log = logging.getLogger("asm_celery.worker")

# A closed guard ends in milliseconds, unless a forked child holds the pipe too and still needs it.
_CLOSE_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


class GuardLink:
    """Tells the guard what is to be ended with this process.

    The guard is started at first use, and anew at the next use after it died; it is then told again all that
    still holds.  A forked child uses its parent's; when that one is dead, it starts one of its own.  A program
    started by exec inherits nothing.

    Safe from any thread and from a signal handler.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pipe: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._has_failed = False
        # what a new guard must be told: each message that still holds
        self._watched: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        self._burial: list[str] = []
        self._executors: dict[str, str] = {}

    def start(self) -> None:
        """Start the guard, unless it runs, and make this process an owner."""
        with self._lock:
            if os.getpid() not in self._watched:
                self.watch(os.getpid())

    def watch(self, pid: int, silence_s: float = 0.0) -> None:
        """Make a process an owner.

        Args:
            silence_s: seconds without a `tick` of it after which it is killed, counted from its first one;
                0 for no limit, also to lift one.
        """
        with self._lock:
            self._watched[pid] = f"watch {pid} {start_time(pid)} {silence_s:g}"
            self._tell(self._watched[pid])

    def tick(self) -> None:
        """Give a sign of life."""
        self._tell(f"tick {os.getpid()}")

    def group(self, pgid: int, token: str) -> None:
        """Have a process group end with this process, and all that carries the token in its environment.

        Its leader is a child that was not reaped, and must not be before `ended` was called.
        """
        with self._lock:
            self.start()
            self._groups[pgid] = f"group {os.getpid()} {pgid} {start_time(pgid)} {token}"
            self._tell(self._groups[pgid])

    def ended(self, pgid: int) -> None:
        """Nothing of the group is alive; call it before the leader is reaped."""
        with self._lock:
            if self._groups.pop(pgid, None) is not None:
                self._tell(f"ended {pgid}")

    def bury_with(self, config: Config) -> None:
        """Have the fate of dead executors written by a `burial` with these settings.

        Settings too long for one message are not told: then their leases run out.
        """
        told = {
            name: value
            for name, value in config.model_dump(mode="json").items()
            if value != Config.default(name)
        }
        message = f"burial {base64.b64encode(json.dumps(told).encode()).decode()}"
        if len(message) < select.PIPE_BUF:
            with self._lock:
                self._burial = [message]
                self._tell(message)

    def executor(self, name: str, owner: int) -> None:
        """Have an executor of this process buried when its owner, a worker's main process, has died with it."""
        with self._lock:
            pid = os.getpid()
            self._executors[name] = f"executor {owner} {pid} {start_time(pid)} {name}"
            self._tell(self._executors[name])

    def left(self, name: str) -> None:
        """Have an executor forgotten that ended in good order."""
        with self._lock:
            if self._executors.pop(name, None) is not None:
                self._tell(f"left {name}")

    def close(self) -> None:
        """Let the guard go.  It kills what groups are left, once no forked child has a line to it either."""
        with self._lock:
            for pid in self._watched:
                # where a forked child keeps the guard, we need give no sign of life any more
                self._write(f"watch {pid} {start_time(pid)} 0")
            self._watched.clear()
            self._groups.clear()
            self._executors.clear()
            self._let_go()
            process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLOSE_S)

    def _tell(self, message: str) -> None:
        with self._lock:
            if self._pipe is not None:
                if self._write(message):
                    return
                self._give_up()
            if self._begin():
                known = [*self._burial, *self._watched.values(), *self._groups.values()]
                known += self._executors.values()
                # twice is as good as once
                for line in [*known, message]:
                    self._write(line)

    def _write(self, message: str) -> bool:
        """Say whether the guard is there to read it; its pipe holds hours of ticks, so a full one is stuck."""
        if self._pipe is None:
            return False
        try:
            os.write(self._pipe, f"{message}\n".encode("ascii"))
        except OSError:
            return False
        return True

    def _give_up(self) -> None:
        """Leave a guard that is dead or stuck.

        A stuck one must not see the end of its pipe: should it move again, it would kill living groups.
        So ours is killed first, and a parent's, which is not ours to kill, keeps our end of the pipe.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            log.warning("the guard process %s died or got stuck, a new one is started", process.pid)
            self._let_go()
        self._pipe = None

    def _let_go(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with contextlib.suppress(OSError):
                os.close(pipe)

    def _begin(self) -> bool:
        # descriptors made by Python are not inherited over an exec
        read_end, write_end = os.pipe()
        try:
            os.set_blocking(write_end, False)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", guard.PROGRAM, guard.__file__, guard.ROOT],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                cwd="/",
                # neither our passwords nor the mark of a command that we may be part of: it must see us die
                env={name: value for name, value in os.environ.items() if not name.startswith("ASM_")},
                start_new_session=True,
            )
            self._pipe, write_end = write_end, -1
        except (OSError, ValueError) as cause:
            if not self._has_failed:
                log.warning("no guard process: a killed worker may leave commands behind (%s)", cause)
            self._has_failed = True
            return False
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        self._has_failed = False
        return True

    def before_fork(self) -> None:
        """Wait for other threads: a child must not copy a half-started guard, nor its end of the pipe."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Be another owner, with the same line and nothing on it."""
        self._lock = threading.RLock()
        self._watched.clear()
        self._groups.clear()
        self._executors.clear()
        if self._process is not None:
            # its finalizer would warn that a child of ours still runs; it is our parent's
            self._process.returncode = 0
            self._process = None


_link = GuardLink()
os.register_at_fork(
    before=_link.before_fork,
    after_in_parent=_link.after_fork_in_parent,
    after_in_child=_link.after_fork_in_child,
)
atexit.register(_link.close)


def link() -> GuardLink:
    """Return this process's link; a forked child gets its own state of it."""
    return _link


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process by SIGKILL when its parent dies; call it first thing in a child.

    On Linux only; elsewhere nothing is done but to end at once if the parent is dead already.  "Parent" is
    the *thread* that forked, so fork from one that lasts as long as the process.

    Args:
        parent: the parent's process id, taken before the fork: one that died between the fork and this call
            gives no signal any more, but is no longer our parent either.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        except (OSError, AttributeError) as cause:
            log.warning("process %s may outlive its parent: %s", os.getpid(), cause)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
