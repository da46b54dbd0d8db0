"""The end of a chaos run: heal everything, wait until every accepted run has ended, collect, judge."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from asm_celery.states import EventType
from tests.checkers import Anomaly, History, check
from tests.checkers.collect import collect, redis_keys
from tests.conftest import environment
from tests.faults import system
from tests.faults.journal import Told
from tests.faults.nemesis import Injected
from tests.faults.stage import Stage
from tests.workers import ROOT

# all runs must have ended so long after the last fault: the workload's own backlog, and every grace there is
DRAIN_S = 120.0
# what may still be written after the last run has ended: the comparison with SQL, retired executors
SETTLE_S = 30.0


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a chaos run came to.

    Attributes:
        anomalies: everything that broke a promise; empty when nothing did.
        drained_s: how long the last runs took to end.
        worker_bytes, redis_bytes: the most memory a process of a worker, and Redis, were seen to occupy.
    """

    history: History
    told: Told
    anomalies: list[Anomaly]
    drained_s: float
    worker_bytes: int
    redis_bytes: int
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def events(self) -> int:
        """How many events the logs hold."""
        return sum(map(len, self.history.events.values()))

    @property
    def statuses(self) -> dict[str, int]:
        """How many runs ended how."""
        return dict(Counter(str(run.status) for run in self.history.runs.values()).most_common())

    @property
    def lost_workers(self) -> int:
        """How many attempts were declared lost, with reason."""
        return sum(
            event.data.get("error_code") == "worker_lost"
            for events in self.history.events.values()
            for event in events
            if event.type in (EventType.RUN_FAILED, EventType.RUN_REQUEUED)
        )


def conclude(stage: Stage, injected: Iterable[Injected]) -> Verdict:
    """End the workload, wait, collect and judge; the workers are down afterwards."""
    found: list[Anomaly] = []
    say("the clients are told to end, everything is healed")
    (stage.folder / "stop").touch()
    began = time.monotonic()
    if not stage.waited(lambda: _open(stage) == 0, DRAIN_S):
        found += [
            Anomaly("lost", f"{run_id} of {session_id} is still {status}")
            for run_id, session_id, status in stage.rows(
                "SELECT run_id, session_id, status FROM runs WHERE ended_at IS NULL"
            )
        ]
    drained_s = time.monotonic() - began
    say(f"{_open(stage)} runs are open after {drained_s:.1f} s")
    if not _clients_have_ended(stage):
        found.append(Anomaly("await", "a client did not end: somebody waits for what has ended"))
    stage.waited(lambda: not _leases(stage), SETTLE_S)
    found += [Anomaly("doctor", text) for text in _doctor(stage)]
    orphans = stage.commands()
    faults = [one.as_checked() for one in injected]
    told = Told(sorted(stage.folder.glob("*.jsonl")))
    history = collect(
        stage.config,
        ledger=stage.ledger.path,
        processes=orphans,
        submits=told.submits,
        stops=told.stops,
        awaited=told.awaited,
        transcripts=told.transcripts,
        limits=stage.limits,
        faults=faults,
    )
    history.faults = [_with_own_deaths(fault, history) for fault in faults]
    members = stage.workers.values()
    verdict = Verdict(
        history=history,
        told=told,
        anomalies=found,
        drained_s=drained_s,
        worker_bytes=max(member.peak_bytes for member in members),
        redis_bytes=stage.redis.peak_bytes,
        restarts={member.name: member.starts - 1 for member in [*members, *stage.clients.values()]},
    )
    say("the workers are stopped")
    stage.stop_workers()
    stage.waited(lambda: not _workers_left(stage), 15.0)
    found += [
        Anomaly("leak", f"process {pid} outlived its worker: {words}") for pid, words in _workers_left(stage)
    ]
    found += [Anomaly("client", text) for text in told.strange]
    found += [
        Anomaly("nemesis", f"{one.kind.name} at {one.at:.3f}: {one.failed}") for one in injected if one.failed
    ]
    # what is found can be looked into, and judged again when a checker was wrong
    (stage.folder / "history.pickle").write_bytes(pickle.dumps(history))
    say(f"{len(history.runs)} runs and {verdict.events} events are checked")
    found += check(history)
    return verdict


def say(text: str) -> None:
    """Tell a person what happens."""
    sys.stderr.write(f"chaos: {text}\n")
    sys.stderr.flush()


def _clients_have_ended(stage: Stage) -> bool:
    """Wait for the clients while they get on: who reads the log of an hour from its beginning takes his time."""
    before, written = -1, 0
    while written > before:
        before, written = written, sum(journal.stat().st_size for journal in stage.folder.glob("*.jsonl"))
        if stage.waited(lambda: all(one.has_ended for one in stage.clients.values()), DRAIN_S):
            return True
    return False


def _open(stage: Stage) -> int:
    return int(stage.rows("SELECT count(*) FROM runs WHERE ended_at IS NULL")[0][0])


def _leases(stage: Stage) -> list[str]:
    return [
        key for key in redis_keys(stage.config) if key.startswith(("leases", "run:", "callers:", "known"))
    ]


def _workers_left(stage: Stage) -> list[tuple[int, str]]:
    return [
        (pid, words)
        for pid in stage.living()
        if ("celery" in (words := system.command(pid)) or "guard" in words)
    ]


def _doctor(stage: Stage) -> list[str]:
    """Return what `asm doctor` has to say against the installation; asked again while workers still mend."""
    wrong: list[str] = []

    def is_well() -> bool:
        wrong[:] = _complaints(stage)
        return not wrong

    stage.waited(is_well, SETTLE_S)
    return wrong


def _complaints(stage: Stage) -> list[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ASM_")}
    done = subprocess.run(
        [sys.executable, "-m", "asm_celery.cli", "doctor", "--json"],
        env={**env, **environment(stage.config)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60.0,
    )
    checks: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    wrong = [f"{one.get('name')}: {one.get('message')}" for one in checks if one.get("level") != "ok"]
    return wrong or (
        [] if checks and done.returncode == 0 else [f"exit {done.returncode}: {done.stderr[-500:]}"]
    )


def _with_own_deaths(fault: Any, history: History) -> Any:
    """Add the processes in which a fault's own runs were entered: they were ended by these runs."""
    if not fault.runs:
        return fault
    own = {entry.pid for entry in history.ledger if entry.run_id in fault.runs}
    return replace(fault, pids=fault.pids | own, until=float("inf"))
