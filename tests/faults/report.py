"""The report of a chaos run, in Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tests.checkers import CHECKERS
from tests.faults import preset
from tests.faults.finale import Verdict
from tests.faults.nemesis import Injected, Kind

# what a promise is called in the table, and the checkers that would have found it broken
PROMISES = {
    "accepted runs lost": ("lost",),
    "runs with two ends, or none": ("ending",),
    "overlaps in a session": ("overlap",),
    "starts out of order, submits out of order": ("order", "submit order"),
    "excess over the global limit": ("limit",),
    "user code entered too often": ("entries",),
    "false deaths": ("false death",),
    "stale writes": ("fence",),
    "events lost or doubled": ("append",),
    "gaps in a log": ("sequence",),
    "transcripts that differ from the log": ("transcript",),
    "keys with two runs": ("idempotency",),
    "stops that did not hold": ("stop",),
    "awaits that differ": ("await",),
    "recoveries beyond three times their bound": ("recovery",),
    "leases, limiter entries and processes left": ("leak",),
    "complaints of asm doctor": ("doctor",),
    "what clients should not see": ("client",),
}


def page(
    verdict: Verdict,
    injected: Sequence[Injected],
    *,
    seed: int,
    minutes: float,
    database: str,
    kinds: Mapping[str, Kind],
    not_here: Mapping[str, str],
    command: str,
) -> str:
    """Return the whole page."""
    lines = [
        f"# Chaos on {'PostgreSQL' if database == 'postgresql' else 'SQLite'}, seed {seed}",
        "",
        f"Written by the run itself: `{command}`.",
        "",
        *_head(verdict, injected, minutes),
        "",
        "## Promises",
        "",
        *_promises(verdict),
        "",
        "## Faults",
        "",
        (
            "Recovery is counted from the healing of a fault until a fresh session's run has completed and every run "
            "that the fault hit is decided; in a storm, from the last healing of its faults."
        ),
        f"The bound is that of these clocks; more than {preset.SLACK:g} times of it is an anomaly.",
        "",
        *_faults(injected, kinds),
    ]
    if not_here:
        lines += ["", "Not possible on this machine:", ""]
        lines += [f"- {name}: {why}" for name, why in sorted(not_here.items())]
    if verdict.anomalies:
        lines += ["", "## Anomalies", ""]
        lines += [f"- **{anomaly.kind}** {anomaly.text[:600]}" for anomaly in verdict.anomalies[:100]]
        if len(verdict.anomalies) > 100:
            lines.append(f"- and {len(verdict.anomalies) - 100} more")
    return "\n".join(lines) + "\n"


def _head(verdict: Verdict, injected: Sequence[Injected], minutes: float) -> Iterator[str]:
    told = verdict.told
    delivered = sum(len(one.received) for one in told.transcripts)
    kinds = len({one.kind.name for one in injected})
    statuses = ", ".join(f"{count} {status}" for status, count in verdict.statuses.items())
    errors = ", ".join(f"{count} {code}" for code, count in sorted(told.errors.items())) or "none"
    restarts = ", ".join(f"{name} {count}" for name, count in verdict.restarts.items())
    acknowledged = len({one.run_id for one in told.submits if one.run_id})
    yield f"- Commit {_commit()}, {time.strftime('%Y-%m-%d', time.gmtime())}, {_machine()}"
    yield (
        f"- Clocks: beat {preset.BEAT_S:g} s, lease {preset.LEASE_S:g} s, repair {preset.REPAIR_S:g} s, ring "
        f"{preset.RING_S:g} s, stop grace {preset.GRACE_S:g} s; limit {preset.LIMIT} runs at once"
    )
    yield f"- {len(injected)} faults of {kinds} kinds in {minutes:.1f} minutes"
    yield f"- {len(verdict.history.runs)} runs: {statuses}; {acknowledged} acknowledged to clients"
    yield f"- {verdict.lost_workers} attempts lost with a worker that a fault had hit"
    yield (
        f"- {verdict.events} events checked; {len(told.transcripts)} transcripts with {delivered} events; "
        f"{told.reached} subscribers reached the end of their session"
    )
    yield f"- {len(told.awaited)} results awaited, {len(told.stops)} stops acknowledged"
    yield f"- Typed errors that clients met and tried again: {errors}"
    yield f"- All runs had ended {verdict.drained_s:.1f} s after the last fault"
    yield (
        f"- Peak memory: a worker's process {verdict.worker_bytes >> 20} MB (the glutton's own included), Redis "
        f"{verdict.redis_bytes >> 20} MB"
    )
    yield f"- Started again by the supervisor: {restarts}"


def _promises(verdict: Verdict) -> Iterator[str]:
    found = Counter(anomaly.kind for anomaly in verdict.anomalies)
    named = {kind for kinds in PROMISES.values() for kind in kinds}
    yield "| what | found |"
    yield "|---|---|"
    for promise, kinds in PROMISES.items():
        yield f"| {promise} | {sum(found[kind] for kind in kinds)} |"
    for kind in sorted((set(found) | set(CHECKERS)) - named):
        yield f"| {kind} | {found[kind]} |"


def _faults(injected: Sequence[Injected], kinds: Mapping[str, Kind]) -> Iterator[str]:
    by_kind: dict[str, list[Injected]] = defaultdict(list)
    for one in injected:
        by_kind[one.kind.name].append(one)
    yield "| component | kind | what | times | alone: longest recovery | in storms | bound | noted last |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, ones in sorted(by_kind.items(), key=lambda item: (item[1][0].kind.of, item[0])):
        kind = kinds[name]
        alone = _longest(one for one in ones if one.was_alone)
        storm = _longest(one for one in ones if not one.was_alone)
        times = f"{alone} | {storm} | {kind.bound_s:g} s"
        yield f"| {kind.of} | {name} | {kind.does} | {len(ones)} | {times} | {_noted(ones)} |"


def _noted(ones: Sequence[Injected]) -> str:
    return next((one.hit.note[:120].replace("|", "/") for one in reversed(ones) if one.hit.note), "")


def _longest(ones: Iterator[Injected]) -> str:
    times = [one.recovered_s for one in ones if one.recovered_s is not None]
    return f"{max(times):.1f} s" if times else "-"


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
