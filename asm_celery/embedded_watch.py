"""A server process that cannot outlive the process that started it, not even through SIGKILL.

A POSIX ``sh`` stands between: it holds the read end of a pipe whose write end is ours alone.  End of file
means that we are gone, however we went, and ends the server.  Which server, and when it is ready, is the
caller's business.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The wrapper: $1 the polite signal, $2 the seconds of grace before SIGKILL, then the server's command.
# stdin is the pipe and stderr a file whose lock the wrapper keeps while it lives; both move to numbers the
# server does not inherit.  `wait` returns early when a trap runs, hence the loop.
_WRAPPER: Final = """
exec 3<&0 4>&2 </dev/null 2>&1
polite=$1 grace=$2
shift 2
"$@" 3<&- 4>&- &
server=$!
trap 'kill -s "$polite" "$server" 2>/dev/null' HUP INT TERM
(
    trap - HUP INT TERM
    exec 4>&-
    read -r _ <&3
    trap 'kill "$!" 2>/dev/null; wait "$!"; exit 0' TERM
    kill -s "$polite" "$server" 2>/dev/null
    sleep "$grace" &
    wait "$!"
    kill -s KILL "$server" 2>/dev/null
) &
watcher=$!
while :; do
    wait "$server"
    status=$?
    kill -0 "$server" 2>/dev/null || break
done
kill "$watcher" 2>/dev/null
wait "$watcher" 2>/dev/null
exit "$status"
"""

_living: weakref.WeakSet[WatchedProcess] = weakref.WeakSet()


class WatchedProcess:
    """One server under the wrapper, in a session of its own so that Ctrl-C reaches us first.

    Guarantee: the server ends when `stop` is called, when this process ends in any way, and when the
    wrapper is told to; a forked child neither keeps it alive nor can stop it.  Like every background job of
    a shell it starts with SIGINT ignored; servers set their own handler.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        lock: int | None = None,
        polite: signal.Signals = signal.SIGTERM,
        grace_s: int = 5,
        user: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """Start the command.

        Args:
            command: program and arguments.
            log: the file its output goes to, emptied first.
            lock: a locked file's descriptor; the lock then lasts as long as the wrapper.
            polite: the first signal of a stop.
            grace_s: seconds between that signal and SIGKILL.
            user: whom to run as; None for the present user.  Only root may choose.
            env: its whole environment; None for ours.
        """
        self.log = log
        self.command = [str(part) for part in command]
        self._grace_s = grace_s
        self._owner = os.getpid()
        read_end, self._write_end = os.pipe()
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _WRAPPER, "asm-watch", polite.name[3:], str(grace_s), *self.command],
                    stdin=read_end,
                    stdout=output,
                    stderr=output if lock is None else lock,
                    start_new_session=True,
                    env=env,
                    user=user,
                    group=None if user is None else pwd.getpwnam(user).pw_gid,
                    extra_groups=None if user is None else [],
                )
        except BaseException:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)
        _living.add(self)

    @property
    def group(self) -> int:
        """The process group (and session) of wrapper, server and all they start."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True when server and wrapper are gone."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the server: politely, then by SIGKILL; returns when it is gone.  Safe to repeat.

        Guarantee: does nothing in a forked child.
        """
        if os.getpid() != self._owner:
            return
        _living.discard(self)
        self._let_go()
        try:
            self._process.wait(self._grace_s + 2)
        except subprocess.TimeoutExpired:
            # the wrapper itself was stopped or lost its watcher: end the whole group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_lines(self, count: int = 20) -> str:
        """Return the end of the log, for the message of a failure."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError as cause:
            return f"(no log: {cause})"
        return "\n".join(lines[-count:]) or "(the log is empty)"

    def _let_go(self) -> None:
        write_end, self._write_end = self._write_end, -1
        if write_end >= 0:
            os.close(write_end)


def _let_go_in_child() -> None:
    # a forked child that kept the write end would keep the server alive after our death
    for process in list(_living):
        process._let_go()
    _living.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
