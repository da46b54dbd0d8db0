"""Programs that start quickly: forked from a process that has imported what they need.

Importing Celery, SQLAlchemy and the rest is most of what a worker or a command costs at its start.  So each
test process keeps one process that has done it, and a program of the tests is a fork of that: it has its own
session, environment and folder, runs its module as ``python -m`` does, and ends in the same ways.  What is
started, and waited for, killed or told by signals, is a small stand-in; see `tests.stand_in`.

At full size every program is started by itself.  So is one whose environment acts before Python does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from asm_celery.worker.guard_link import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
_STAND_IN = Path(__file__).with_name("stand_in.py")
# read by the dynamic linker or by the interpreter itself, before a fork could follow them
_EARLY = ("LD_", "DYLD_", "PYTHONHASHSEED", "PYTHONASYNCIODEBUG", "PYTHONMALLOC", "PYTHONWARNINGS")
_IMPORTED = (
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.apps.worker",
    "celery.app.events",
    "celery.app.log",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.events.state",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.pidbox",
    "kombu.transport.redis",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "asm_celery.aio",
    "asm_celery.cli",
    "asm_celery.sessions",
    "asm_celery.worker.context",
    "asm_celery.worker.inprocess",
)


def program(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> list[str]:
    """Return the command that does what ``python -m module arguments`` does, quickly where that is the same.

    Args:
        env: the environment it will be started with; None for ours.
    """
    present = os.environ if env is None else env
    if os.environ.get("ASM_TEST_FULL") or any(
        name.startswith(_EARLY) and value != os.environ.get(name) for name, value in present.items()
    ):
        return [sys.executable, "-m", module, *arguments]
    return [sys.executable, "-I", "-S", str(_STAND_IN), _nursery(os.getpid()), module, *arguments]


@cache
def _nursery(_owner: int) -> str:
    """Start this process's nursery; return where it listens.  A forked child that asks gets its own."""
    folder = tempfile.mkdtemp(prefix="asm-nursery-")
    place = str(Path(folder, "s"))
    nursery = subprocess.Popen(
        [sys.executable, "-m", "tests.nursery", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None

    def end() -> None:
        if os.getpid() == _owner:
            nursery.communicate()

    atexit.register(end)
    assert nursery.stdout.readline(), "the nursery did not start"
    return place


class _Nursery:
    """The process that forks; it ends, and with it all that it forked, when its standard input does."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._living: dict[socket.socket, int] = {}

    def next_program(self) -> tuple[dict[str, Any], list[int]] | None:
        """Serve until one is to be started; returns in its process.  None, in ours, at the end of all."""
        while True:
            # a child that ends wakes nobody: its end is looked for at each turn
            patience_s = 0.02 if self._living else None
            ready, _, _ = select.select([0, self._listener, *self._living], [], [], patience_s)
            self._bury()
            for one in ready:
                if one is self._listener:
                    if (found := self._begin()) is not None:
                        return found
                elif one in self._living:
                    self._pass_on(one)
                elif one == 0:
                    for pid in self._living.values():
                        _kill_group(pid)
                    return None

    def _begin(self) -> tuple[dict[str, Any], list[int]] | None:
        connection, _ = self._listener.accept()
        text, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        while not text.endswith(b"\n"):
            text += (more := connection.recv(1 << 16))
            if not more:
                return None
        owner = os.getpid()
        if (pid := os.fork()) == 0:
            die_with_parent(owner)
            for one in (self._listener, connection, *self._living):
                one.close()
            return json.loads(text), list(files)
        for file in files:
            os.close(file)
        self._living[connection] = pid
        return None

    def _pass_on(self, connection: socket.socket) -> None:
        """Hand a signal on; where the stand-in is gone, its program goes too."""
        told = b""
        with contextlib.suppress(ConnectionError):
            told = connection.recv(1)
        pid = self._living[connection]
        if told:
            os.kill(pid, told[0])
        else:
            _kill_group(pid)
            os.waitpid(pid, 0)
            del self._living[connection]
            connection.close()

    def _bury(self) -> None:
        for connection, pid in list(self._living.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
                del self._living[connection]
                connection.close()


def _kill_group(pid: int) -> None:
    # the group is made by the child itself, and may not be there yet
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _become(order: Mapping[str, Any], files: Sequence[int]) -> None:
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if order["ignores_sigint"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    here = [str(one) for one in (order["folder"], *os.environ.get("PYTHONPATH", "").split(os.pathsep)) if one]
    sys.path[:1] = here
    sys.argv = ["", *order["arguments"]]
    # what a program would be started with again
    sys.orig_argv = [sys.executable, "-m", order["module"], *order["arguments"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Be the nursery that listens at the path given."""
    for name in _IMPORTED:
        importlib.import_module(name)
    # pages that nobody writes stay shared
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        os.write(sys.stdout.fileno(), b"ready\n")
        found = _Nursery(listener).next_program()
    if found is not None:
        _become(*found)
    else:
        shutil.rmtree(Path(sys.argv[1]).parent)


if __name__ == "__main__":
    main()
