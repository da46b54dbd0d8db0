"""The report of a test run at full size: what was run, where, what was measured, what took longest."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import pytest

SLOWEST = 25


class Report:
    """Collects what tests say of themselves by `record_property`, and writes one Markdown page.

    Args:
        path: the page, written when the run has ended, also after a failure.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.time()
        self._counts: dict[str, int] = {}
        self._times: list[tuple[float, str]] = []
        self._measured: list[tuple[str, str, object]] = []
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of one test."""
        if report.when != "call" and report.passed:
            return
        self._counts[report.outcome] = self._counts.get(report.outcome, 0) + 1
        if report.failed:
            self._failed.append(report.nodeid)
        if report.when == "call":
            self._times.append((report.duration, report.nodeid))
            self._measured += [(report.nodeid, name, value) for name, value in report.user_properties]

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(self._lines()) + "\n", encoding="utf-8")

    def _lines(self) -> list[str]:
        counts = ", ".join(f"{count} {word}" for word, count in sorted(self._counts.items()))
        took = time.time() - self._began
        return [
            "# The last run of `./dev test --full`",
            "",
            "Written by the run itself; the sizes are those that the tests name as full.",
            "",
            f"- Commit {_commit()}, {time.strftime('%Y-%m-%d', time.gmtime())}, {_machine()}",
            f"- {counts}, in {took:.0f} s",
            *(f"- FAILED `{name}`" for name in self._failed),
            "",
            "## Measured",
            "",
            "| Test | What | Value |",
            "|---|---|---|",
            *(f"| `{test}` | {name} | {value} |" for test, name, value in sorted(self._measured, key=str)),
            "",
            "## Slowest",
            "",
            "| Seconds | Test |",
            "|---|---|",
            *(
                f"| {seconds:.1f} | `{test}` |"
                for seconds, test in sorted(self._times, reverse=True)[:SLOWEST]
            ),
        ]


class Measured:
    """Collects what the tests of one module measured, and writes a page with a table for each of them.

    Args:
        path: the page, written when the run has ended, if anything was measured.
        module: the end of the module's path.
        head: the lines before the tables.
    """

    def __init__(self, path: Path, module: str, head: str) -> None:
        self._path = path
        self._module = module
        self._head = head
        self._measured: dict[str, list[tuple[str, object]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of one test."""
        if report.when == "call" and self._module in report.nodeid and report.user_properties:
            word = "" if report.passed else " FAILED"
            self._measured[report.nodeid.partition("::")[2] + word] = report.user_properties

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        if not self._measured:
            return
        lines = [
            self._head,
            "",
            f"- Commit {_commit()}, {time.strftime('%Y-%m-%d', time.gmtime())}, {_machine()}",
        ]
        for test, measured in sorted(self._measured.items()):
            lines += ["", f"## {test}", "", "| What | Value |", "|---|---|"]
            lines += [f"| {name} | {value} |" for name, value in measured]
        self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_FLOOD: Final = """# Floods

Written by `tests/faults/test_flood.py` at full size: 50,000 submits to 100 sessions that may have 21 open runs
each while a worker executes; then an agent that says 2,000 events as fast as they are stored, before 1,000
subscribers of one process with buffers of 100 events, which read none of them until it has ended.
The bounds: a refusal takes less than 100 ms (99 of 100, times 3 in the test), no process grows by more than
64 MiB, Redis holds less than 32 MiB; nothing accepted is lost, and nothing said."""


def register(config: pytest.Config) -> None:
    """Have a full run write its pages where ``ASM_TEST_..._REPORT`` say; the workers of xdist do not."""
    path: Any = os.environ.get("ASM_TEST_REPORT")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Report(Path(path).absolute()), "asm-report")
    flood: Any = os.environ.get("ASM_TEST_FLOOD_REPORT")
    if flood and not hasattr(config, "workerinput"):
        page = Measured(Path(flood).absolute(), "faults/test_flood.py", _FLOOD)
        config.pluginmanager.register(page, "asm-flood-report")


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
