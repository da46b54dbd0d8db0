"""``./dev bench [--rounds 5] [--database sqlite] [--pool threads]``: a Markdown table of medians and ratios."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.stage import stage


def main() -> int:
    """Measure in interleaved rounds, so that what disturbs one side disturbs both; print the medians."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--pool", choices=["threads", "prefork"], default="threads")
    parser.add_argument("--concurrency", type=int, default=8)
    given = parser.parse_args()
    figures: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="asm-bench-") as folder,
        stage(given.database, given.pool, given.concurrency, Path(folder)) as here,
    ):
        from benchmarks import measures

        ours, plain = here.ours(), here.plain()
        for number in range(given.rounds):
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
            for found in (
                measures.submit(here, ours, plain),
                measures.end_to_end(here),
                measures.pick_up(here),
                measures.awaiting(here),
                measures.cancelling(here),
                measures.gap_locked(here),
            ):
                for name, value in found.items():
                    figures.setdefault(name, []).append(value)
        plain.stop()
        for _ in range(given.rounds):
            for name, value in measures.gap(here, ours).items():
                figures.setdefault(name, []).append(value)
    print(f"{given.database}, {given.pool} of {given.concurrency}, {given.rounds} rounds, {_machine()}\n")
    print("| what | median | least | most |\n|---|---|---|---|")
    for name, values in figures.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    return 0


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
