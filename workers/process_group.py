"""`ProcessGroup`: a command in a session and process group of its own.

When it is left - the command ended, it was stopped, its time was up, the code that reads it failed - and when
the worker is killed, nothing of the command is alive.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final, Self

from asm_celery.errors import InvalidInput
from asm_celery.worker.guard_link import link
from asm_celery.worker.process import sweep

# How a command is asked to end: a signal to its whole group, and the seconds it has to obey.
LADDER: Final[Sequence[tuple[signal.Signals, float]]] = (
    (signal.SIGINT, 2.0),
    (signal.SIGTERM, 2.0),
    (signal.SIGKILL, 1.0),
)
# A line longer than this is given in pieces: one event has a limit.
LINE_CHARACTERS: Final = 16_384
# The environment variable that marks all processes of a command; what is checked is only its value.
MARK: Final = "ASM_GROUPS"
# Settings and passwords of the worker and of what it stands on: no command needs them.
_OURS: Final = ("ASM_", "CELERY_", "FLOWER_", "PG", "POSTGRES_", "REDIS")
_GATE: Final = 'read -r _ || exit 127; exec "$@" </dev/null'
_CHUNK: Final = 65_536
_LOOK_S: Final = 0.05
# What a killed group had written is still in the pipe; a process that escaped may hold it open.
_DRAIN_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run.

    Attributes:
        argv: the program and its arguments.
        cwd: the folder to run in; None for the worker's.
        env: variables added to the worker's, whose own settings (ASM_*) are not passed on.
        timeout: seconds it may take; None for no limit but the run's.
    """

    argv: list[str]
    cwd: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    timeout: float | None = None


class ProcessGroup:
    """A command and every process it starts.

    Start it by entering it.  From then on it is known to this process's guard, so that it also ends when this
    process is killed.  What a stop and an end reach:

    * the command and all that stays in its process group: on every system;
    * what left the group (``setsid``, a daemon): it is found by a mark in its environment, where there is a
      /proc (Linux), and killed when the command has ended.

    What escapes: a process that left the group *and* started a program with the mark taken out of its
    environment, or runs as another user; elsewhere than on Linux, whatever left the group.
    """

    def __init__(self, command: Command, ladder: Sequence[tuple[signal.Signals, float]]) -> None:
        self.is_overdue = False
        self.exit_code: int | None = None
        self._command = command
        self._ladder = ladder
        self._due_at = None if command.timeout is None else time.monotonic() + command.timeout
        # Guards the moment the leader is reaped: until then its id, which is the group's, is nobody else's.
        self._lock = threading.Lock()
        self._is_stopping = False
        self._token = os.urandom(8).hex()

    def __enter__(self) -> Self:
        """Start the command.

        Raises:
            InvalidInput: there is no such program.
        """
        # Between the fork and the guard's knowing of it, nobody would end the command of a worker killed just
        # then.  So what is forked is a gate: a shell that turns into the command when told to, and ends when
        # the pipe does, as it does with us.
        gate, opener = os.pipe()
        try:
            self._process = self._start_gate(gate)
            link().group(self._process.pid, self._token)
            os.write(opener, b"\n")
        except BaseException:
            # StopRun, raised by a signal in here: there will be no __exit__
            os.close(opener)
            opener = -1
            if hasattr(self, "_process"):
                self.__exit__()
            raise
        finally:
            os.close(gate)
            if opener >= 0:
                os.close(opener)
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left of the command and reap its leader."""
        try:
            self._end()
        finally:
            # a StopRun may have been raised in the middle of it
            if self.exit_code is None:
                self._end()

    def stop(self) -> None:
        """Lead the group down the ladder; returns when the command has ended.  Safe to repeat."""
        with self._lock:
            if self._is_stopping:
                return
            self._is_stopping = True
        for number, patience in self._ladder:
            with self._lock:
                if self.exit_code is not None:
                    return
                self._signal(number)
            until = time.monotonic() + patience
            while time.monotonic() < until:
                if self._has_ended():
                    return
                time.sleep(_LOOK_S)

    def lines(self) -> Iterator[str]:
        """Yield the output as it comes, line by line, until the command ends; then what is left of it."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        begun = ""
        for chunk in self._chunks():
            *complete, begun = (begun + decoder.decode(chunk)).split("\n")
            for line in complete:
                yield from _pieces(f"{line}\n")
            if len(begun) > LINE_CHARACTERS:
                yield from _pieces(begun)
                begun = ""
        yield from _pieces(begun + decoder.decode(b"", final=True))

    def _chunks(self) -> Iterator[bytes]:
        pipe: IO[bytes] | None = self._process.stdout
        if pipe is None:
            return
        os.set_blocking(pipe.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            last_look = None
            while True:
                if selector.select(_LOOK_S):
                    chunk = os.read(pipe.fileno(), _CHUNK)
                    if not chunk:
                        break
                    yield chunk
                elif last_look is not None:
                    break
                self._check_time()
                if last_look is None and self._has_ended():
                    # its children in the background end with it; they would hold the pipe open
                    self._kill_rest()
                    last_look = time.monotonic() + _DRAIN_S
                if last_look is not None and time.monotonic() > last_look:
                    break
        while not self._has_ended():
            # it closed its output and goes on
            self._check_time()
            time.sleep(_LOOK_S)

    def _check_time(self) -> None:
        if self._due_at is not None and time.monotonic() >= self._due_at and not self.is_overdue:
            self.is_overdue = True
            threading.Thread(target=self.stop, name="asm-shell-timeout", daemon=True).start()

    def _has_ended(self) -> bool:
        """Say whether the leader has ended; it is not reaped, so that the group keeps its id."""
        with self._lock:
            if self.exit_code is not None:
                return True
            with contextlib.suppress(ChildProcessError):
                flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
                return os.waitid(os.P_PID, self._process.pid, flags) is not None
            return True

    def _start_gate(self, gate: int) -> subprocess.Popen[bytes]:
        command = self._command
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        # of a worker that is itself part of a command, the outer marks are passed on
        marks = ":".join(filter(None, [os.environ.get(MARK), self._token]))
        env = {**inherited, **command.env, MARK: marks}
        program = command.argv[0]
        found = program if os.sep not in program else os.path.join(command.cwd or ".", program)  # noqa: PTH118
        if shutil.which(found, path=env.get("PATH", os.defpath)) is None:
            raise InvalidInput(f"{program!r} cannot be started: there is no such program")
        try:
            with _interruptible():
                return subprocess.Popen(
                    ["/bin/sh", "-c", _GATE, "asm-gate", *command.argv],
                    cwd=command.cwd,
                    env=env,
                    stdin=gate,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except (OSError, ValueError) as cause:
            raise InvalidInput(f"{program!r} cannot be started: {cause}") from cause

    def _end(self) -> None:
        with self._lock:
            self._signal(signal.SIGKILL)
            if self.exit_code is None:
                self._wait_for_end()
            # No process of the group is left to start another, so what the sweep finds are all there are.
            sweep([self._token])
            # Before the reaping: afterwards the group's number may be another's, and the guard, if we died
            # just then, might take that for ours.
            link().ended(self._process.pid)
            code = self._process.wait()
            # as a shell says it: 128 + the signal that ended it
            self.exit_code = code if code >= 0 else 128 - code
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _wait_for_end(self) -> None:
        """Wait until the leader is a zombie, which keeps the group's number."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _kill_rest(self) -> None:
        with self._lock:
            self._signal(signal.SIGKILL)
        sweep([self._token])

    def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a command started in the block hear SIGINT.

    Celery's prefork children ignore it, and what is ignored stays so in a started program, while what is
    handled is reset there.  Only the main thread may change it; a prefork child's agents run there.
    """
    if (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pieces(line: str) -> Iterator[str]:
    for at in range(0, len(line), LINE_CHARACTERS):
        yield line[at : at + LINE_CHARACTERS]
