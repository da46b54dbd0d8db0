"""``./dev chaos``: a run of the whole system under faults, from the command line."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import servers
from tests.faults.finale import Verdict, conclude, say
from tests.faults.kinds import KINDS
from tests.faults.nemesis import Nemesis
from tests.faults.report import page
from tests.faults.stage import stage

# the workload alone, before the first fault
WARM_S = 3.0


def main() -> None:
    """Run as the command line says; exit 1 on any anomaly."""
    options = _options()
    if options.list:
        for kind in KINDS.values():
            sys.stdout.write(f"{kind.of:9} {kind.name:28} {kind.does}\n")
        return
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    minutes = options.minutes if options.minutes or options.faults else 5.0
    anomalies = chaos(
        seed=seed,
        minutes=minutes,
        faults=options.faults,
        database=options.database,
        report=options.report,
        only=options.only,
        keep=options.keep,
    )
    for anomaly in anomalies.anomalies[:50]:
        say(f"{anomaly.kind}: {anomaly.text[:1000]}")
    say(f"{len(anomalies.anomalies)} anomalies; repeat it with --seed {seed} --database {options.database}")
    sys.exit(1 if anomalies.anomalies else 0)


def chaos(
    *,
    seed: int,
    minutes: float | None = None,
    faults: int | None = None,
    database: str = "postgresql",
    report: Path | None = None,
    only: str | None = None,
    keep: bool = False,
) -> Verdict:
    """Run chaos and return what it came to.

    Args:
        minutes: how long faults are injected; None: until there were so many.
        faults: how many are injected at most; None: as many as fit.
        only: only kinds with this text in their name or component.
    """
    kinds = {name: kind for name, kind in KINDS.items() if not only or only in name or only == kind.of}
    # short, because a Unix socket's path has 107 characters
    folder = Path(tempfile.mkdtemp(prefix="asm-chaos-", dir=servers._temporary()))
    say(f"seed {seed}, on {database}, in {folder}")
    began = time.monotonic()
    try:
        with stage(folder, database, seed) as opened:
            say(f"everything is up after {time.monotonic() - began:.1f} s")
            opened.waited(lambda: False, WARM_S)
            began = time.monotonic()
            nemesis = Nemesis(opened, kinds, seed)
            until = float("inf") if minutes is None else began + 60 * minutes
            nemesis.play(until=until, faults=faults)
            took = (time.monotonic() - began) / 60
            verdict = conclude(opened, nemesis.injected)
        words = f"./dev chaos --seed {seed} --database {database}"
        words += f" --minutes {minutes:g}" if minutes else ""
        words += f" --faults {faults}" if faults else ""
        text = page(
            verdict,
            nemesis.injected,
            seed=seed,
            minutes=took,
            database=database,
            kinds=kinds,
            not_here=nemesis.not_here,
            command=words,
        )
        (folder / "report.md").write_text(text)
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(text)
        keep = keep or bool(verdict.anomalies)
        return verdict
    finally:
        if keep:
            say(f"everything that was written is kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev chaos",
        description="Run workers, clients, Valkey and PostgreSQL under faults, and check that every promise "
        "was kept. It starts and ends everything itself. Exit 1 on any anomaly, with the seed to repeat it.",
    )
    parser.add_argument(
        "--minutes", type=float, help="how long faults are injected (5, unless --faults is given)"
    )
    parser.add_argument("--faults", type=int, help="end after so many faults")
    parser.add_argument("--seed", type=int, help="what is done, in which order; any if not given")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--report", type=Path, help="write a Markdown report here")
    parser.add_argument("--only", help="only faults of this component, or with this in their name")
    parser.add_argument(
        "--keep", action="store_true", help="keep the logs and journals; also kept after anomalies"
    )
    parser.add_argument("--list", action="store_true", help="list the kinds of faults")
    return parser.parse_args()


if __name__ == "__main__":
    main()
