"""``./dev bench [--only submit,gap] [--database postgresql] [--report FILE]``: one table of medians and ratios."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import cast

from benchmarks import figures, page
from benchmarks.dispatching import gap, pick_up
from benchmarks.figures import Figures, Size
from benchmarks.footprint import holding, idle, idle_sessions
from benchmarks.growing import growth
from benchmarks.limits import limits
from benchmarks.moving import moves
from benchmarks.recovering import recovery
from benchmarks.running import run
from benchmarks.stage import Stage
from benchmarks.streaming import events
from benchmarks.submitting import submit
from benchmarks.waiting import await_end, cancel

# in this order: what an idle worker holds is measured before it has worked
MEASURES: dict[str, Callable[[Stage, Size], Iterator[Figures]]] = {
    "idle": idle,
    "raw": limits,
    "moves": moves,
    "submit": submit,
    "run": run,
    "gap": gap,
    "pick_up": pick_up,
    "await": await_end,
    "cancel": cancel,
    "events": events,
    "sessions": idle_sessions,
    "holding": holding,
    "growth": growth,
    "recovery": recovery,
}


def main() -> int:
    """Take each measure for some rounds, ours and the others' in turns within each; print the medians."""
    given = _given()
    size = figures.TINY if given.tiny else figures.FULL
    if not given.tiny:
        # workers start as users start them, and share no memory with one that was forked before
        os.environ["ASM_TEST_FULL"] = "1"
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="asm-bench-") as folder,
        Stage(given.database, given.pool, given.concurrency, Path(folder)) as stage,
    ):
        found, failed = taken(stage, size, given.only, given.rounds)
    table = page.table(found, given.database)
    print(
        f"{given.database}, {given.pool} of {given.concurrency}, {given.rounds} rounds, {page.machine()}\n\n{table}"
    )
    if given.report:
        whole = page.page(
            table,
            database=given.database,
            pool=given.pool,
            concurrency=given.concurrency,
            rounds=given.rounds,
            size=size,
            took_s=time.monotonic() - began,
            failed=failed,
        )
        given.report.write_text(whole)
    return 1 if failed else 0


def taken(
    stage: Stage, size: Size, names: list[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Take the measures; return each figure's value in each round, and what stopped a measure, by its name."""
    found: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for name in names:
        since = time.monotonic()
        # closed here and now, not when it is forgotten: what it has started ends before the next one
        with closing(cast("Generator[Figures]", MEASURES[name](stage, size))) as measure:
            try:
                for one in islice(measure, rounds):
                    for what, value in one.items():
                        found.setdefault(what, []).append(value)
            except Exception as cause:  # noqa: BLE001 - what the others find is worth its report all the same
                traceback.print_exc()
                failed[name] = f"{type(cause).__name__}: {cause}"
        print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr)
    return found, failed


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--only", type=_names, default=list(MEASURES), help=f"some of {', '.join(MEASURES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--pool", choices=["threads", "prefork"], default="threads")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the page too")
    parser.add_argument("--tiny", action="store_true", help="does everything work? the figures say nothing")
    return parser.parse_args()


def _names(words: str) -> list[str]:
    names = words.split(",")
    if unknown := set(names) - set(MEASURES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose of {', '.join(MEASURES)}")
    return [name for name in MEASURES if name in names]


if __name__ == "__main__":
    sys.exit(main())
