"""The table, and the page that it stands on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import celery

from benchmarks.figures import Size
from benchmarks.targets import TARGETS


def table(figures: Mapping[str, Sequence[float]], database: str) -> str:
    """Return the medians of all rounds, least and most, and whether a target is met."""
    lines = ["| what | median | least | most | target | met |", "|---|---:|---:|---:|---|---|"]
    for name, values in figures.items():
        median = statistics.median(values)
        target, met = _judged(name, median, database)
        numbers = " | ".join(map(_shown, (median, min(values), max(values))))
        lines.append(f"| {name} | {numbers} | {target} | {met} |")
    return "\n".join(lines)


def machine() -> str:
    """Return what the figures depend on."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, {next(iter(named), 'kind unknown')}, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, Celery {celery.__version__}, redis-py {version('redis')}, "
        f"SQLAlchemy {version('sqlalchemy')}, SQLite {sqlite3.sqlite_version}; load at the end {load}"
    )


def page(
    body: str,
    *,
    database: str,
    pool: str,
    concurrency: int,
    rounds: int,
    size: Size,
    took_s: float,
    failed: Mapping[str, str],
) -> str:
    """Return the whole report."""
    stopped = "".join(f"- FAILED `{name}`: {' '.join(why.split())[:300]}\n" for name, why in failed.items())
    return f"""# Speed: {database}, {pool} of {concurrency}

Written by `./dev bench --database {database} --pool {pool} --report FILE`; what the lines mean stands in
[performance.md](../explanation/performance.md).  Figures of two runs are not to be compared, ratios are:
each is of two things done one after the other in the same round.

- Commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}, {rounds} rounds in {took_s:.0f} s
- {machine()}
- {size}
{stopped}
{body}
"""


def _judged(name: str, median: float, database: str) -> tuple[str, str]:
    target = TARGETS.get(name)
    bound = None if target is None else target.bound(database)
    if target is None or bound is None:
        return "", ""
    met = median >= bound if target.least else median <= bound
    return f"{target.word} {bound:g}", "yes" if met else "**no**"


def _shown(number: float) -> str:
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    return f"{number:,.{digits}f}"


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"
