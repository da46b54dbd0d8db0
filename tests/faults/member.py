"""A process of a chaos run under a supervisor that starts it again when it has died."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from asm_celery.embedded_watch import WatchedProcess
from tests.faults import system


class Member:
    """A worker or a client.

    Attributes:
        name: also its Celery name.
        kind: ``prefork``, ``threads`` or ``client``.
        is_linked: its ways to the stores are links of ours.
        starts: how often it was started.
        peak_bytes: the most memory one of its processes was seen to occupy.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        *,
        is_linked: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.is_linked = is_linked
        self.starts = 0
        self.peak_bytes = 0
        self.is_wanted = True
        self._command = list(command)
        self._env = dict(env)
        self._folder = folder
        self._process: WatchedProcess | None = None
        self._lock = threading.Lock()

    @property
    def is_ready(self) -> bool:
        """A worker says so; a client is when it lives."""
        if self.has_ended:
            return False
        return self.kind == "client" or " ready." in self.log

    @property
    def log_file(self) -> Path:
        """What this start of it writes."""
        return self._folder / f"{self.name}.{self.starts}.log"

    @property
    def log(self) -> str:
        """What it has written."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def has_ended(self) -> bool:
        """True when its main process is gone."""
        return self._process is None or self._process.has_ended

    def start(self) -> None:
        """Start it, unless it lives."""
        with self._lock:
            if not self.has_ended or not self.is_wanted:
                return
            self._end()
            self.starts += 1
            env = {**self._env, "CHAOS_START": str(self.starts)}
            self._process = WatchedProcess(self._command, log=self.log_file, env=env, grace_s=15)

    def main(self, table: system.Table | None = None) -> int:
        """Return its main process; 0 when it is gone."""
        if self._process is None:
            return 0
        for pid in (table or system.Table()).children(self._process.group):
            if "python" in system.command(pid):
                return pid
        return 0

    def all(self, table: system.Table | None = None) -> list[int]:
        """Return main process, children, guard and whatever they started."""
        table = table or system.Table()
        main = self.main(table)
        return [main, *table.descendants(main)] if main else []

    def guard(self) -> list[int]:
        """Return its guard process."""
        return [pid for pid in self.all() if "guard" in system.command(pid)]

    def children(self, table: system.Table | None = None) -> list[int]:
        """Return its pool's children; empty for threads."""
        table = table or system.Table()
        if self.kind != "prefork" or not (main := self.main(table)):
            return []
        return [pid for pid in table.children(main) if "guard" not in system.command(pid)]

    def executors(self, table: system.Table | None = None) -> list[int]:
        """Return the processes that execute runs."""
        table = table or system.Table()
        return self.children(table) if self.kind == "prefork" else [pid for pid in [self.main(table)] if pid]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        if main := self.main():
            system.send(number, [main])

    def measure(self, table: system.Table) -> None:
        """Note how much memory its processes occupy."""
        executors = self.executors(table)
        self.peak_bytes = max([self.peak_bytes, *map(system.resident_bytes, executors)])

    def stop(self) -> None:
        """End it for good, as a deploy does."""
        self.is_wanted = False
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            group = self._process.group
            self._process.stop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._process = None
