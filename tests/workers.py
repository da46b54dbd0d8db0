"""Real Celery workers as processes, for the acceptance tests."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import psutil

from asm_celery.embedded_watch import WatchedProcess
from tests.nursery import ROOT, program
from tests.waiting import wait_until


class WorkerProcess:
    """One ``celery worker`` in a process group of its own, which cannot outlive the test run.

    Attributes:
        name: its Celery name is ``name@HOST``.
        pid: the worker's main process.
    """

    def __init__(
        self,
        module: str,
        *,
        env: Mapping[str, str],
        folder: Path,
        pool: str = "prefork",
        concurrency: int = 2,
        loglevel: str = "INFO",
        name: str | None = None,
        queues: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        """Start ``celery -A module worker`` and wait until it says that it is ready.

        Args:
            env: added to this process's environment, whose own ASM_* variables are left out.
            folder: where its log and pid file go; also importable by the worker.
            queues: Celery queues; empty for the application's own.
            options: further command line options.
        """
        self.name = name or f"w{uuid4().hex[:8]}"
        self._log = folder / f"{self.name}.log"
        pidfile = folder / f"{self.name}.pid"
        # fmt: off
        arguments = [
            "-A", module, "worker", "-P", pool, "-c", str(concurrency),
            "--loglevel", loglevel, "-n", f"{self.name}@%h", "--without-mingle", "--without-gossip",
            "--pidfile", str(pidfile), *(["-Q", ",".join(queues)] if queues else []), *options,
        ]
        # fmt: on
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ASM_")}
        path = os.pathsep.join([str(ROOT), str(folder), *filter(None, [inherited.get("PYTHONPATH")])])
        full = {**inherited, "PYTHONPATH": path, **env}
        command = program("celery", *arguments, env=full)
        self._process = WatchedProcess(command, log=self._log, env=full, grace_s=20)
        self._group = self._process.group
        try:
            wait_until(self._is_ready, description=f"worker {self.name} is ready", timeout=40.0)
            self.pid = int(pidfile.read_text())
            # its own, or that of what watches it
            with contextlib.suppress(ProcessLookupError):
                self._group = os.getpgid(self.pid)
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        """All it has written so far."""
        return self._log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        """True when its main process is gone."""
        return self._process.has_ended

    def terminate(self) -> None:
        """Send SIGTERM to the main process, as a deploy does, and do not wait."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until its main process is gone."""
        wait_until(lambda: self.has_ended, description=f"worker {self.name} has ended", timeout=timeout)

    def stop(self) -> None:
        """End it as a deploy does, after 20 s by SIGKILL; nothing of its group is left.  Safe to repeat."""
        self._process.stop()
        self._kill_group()

    def kill(self) -> None:
        """End guard, main process and children at once by SIGKILL, as a lost machine does."""
        for guard in self.guards():
            with contextlib.suppress(psutil.Error):
                guard.kill()
        self._kill_group()
        self._process.stop()

    def die(self) -> None:
        """End the main process alone by SIGKILL, as ``kill -9`` does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def guards(self) -> list[psutil.Process]:
        """The guard processes of its main process."""
        try:
            children = psutil.Process(self.pid).children()
            return [one for one in children if any("guard.py" in word for word in one.cmdline())]
        except (psutil.Error, AttributeError):
            # it has ended, or did not begin
            return []

    def _kill_group(self) -> None:
        # the number of what has ended may be another's by now
        for group in () if self.has_ended else {self._group, self._process.group}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def _is_ready(self) -> bool:
        log = self.log
        assert not self._process.has_ended, f"worker {self.name} ended at once:\n{log}"
        return " ready." in log
