"""The measured table of stops as Markdown, for docs/explanation/stopping.md."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.stops.cells import AGENTS, POOLS, STOPS

# the name of the property, and what its value says of a cell: the seconds come last
PROPERTY = "seconds to the terminal event"


class Table:
    """Collects the times of the cells, and writes one table: agents down, pools and stops across."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of one cell."""
        for name, value in report.user_properties:
            if report.when == "call" and name == PROPERTY:
                agent, stop, pool, _, seconds = str(value).split()
                self._times[agent, stop, pool].append(float(seconds))

    def pytest_sessionfinish(self) -> None:
        """Write it."""
        heads = [f"{pool}, {stop}" for pool in POOLS for stop in STOPS]
        lines = [
            f"| Agent | {' | '.join(heads)} |",
            f"|---|{'---|' * len(heads)}",
            *(
                f"| `{agent}` | {' | '.join(self._cell(agent, stop, pool) for pool in POOLS for stop in STOPS)} |"
                for agent in AGENTS
            ),
        ]
        self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _cell(self, agent: str, stop: str, pool: str) -> str:
        times = self._times.get((agent, stop, pool))
        return f"{max(times):.2f} s" if times else ""


def register(config: pytest.Config) -> None:
    """Have it written, by the process that hears of all tests."""
    path: Any = os.environ.get("ASM_TEST_STOPS_TABLE")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(Path(path).absolute()), "asm-stops-table")
