"""A terminate that is aimed at a run which is just ending hits nobody else, least of all the next run there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from asm_celery import AgentSessions, SessionServer
from asm_celery.states import TERMINAL_EVENTS, RunStatus
from tests.acceptance.conftest import FULL, StartWorker
from tests.acceptance.ledger import Ledger
from tests.stops.racing import Aim
from tests.stops.stage import ZOO

pytestmark = pytest.mark.either_database

SHOTS = 1000 if FULL else 100
LANES = 4
# so short that the answer to a terminate often finds the next run in its place
WORK_S = 0.008
AHEAD = 3

Shoot = Callable[[AgentSessions, SessionServer, str], None]


def terminate(asm: AgentSessions, server: SessionServer, run_id: str) -> None:
    """Do as Flower's button does."""
    asm.celery_app.control.revoke(run_id, terminate=True)


def cancel(asm: AgentSessions, server: SessionServer, run_id: str) -> None:
    """Cancel; the agent has no grace, so its process is ended at once."""
    server.cancel_run(run_id)


@pytest.mark.timeout(1800 if FULL else 180)
@pytest.mark.parametrize(
    ("shoot", "concurrency"),
    [(terminate, 1), (cancel, 2), *([(terminate, 2), (cancel, 1)] if FULL else [])],
)
def test_no_innocent_run_is_hit(
    asm: AgentSessions,
    worker: StartWorker,
    ledger: Ledger,
    shoot: Shoot,
    concurrency: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Every run that was not aimed at completes, in its first attempt; the others complete or are cancelled."""
    living = worker(
        ZOO, pool="prefork", concurrency=concurrency, lease_s=10.0, beat_s=0.5, max_queued_runs=10_000
    )

    def lane(shots: int) -> tuple[SessionServer, set[str]]:
        server, aim, targets = asm.start_session("brief"), Aim(WORK_S), set()
        waiting = [server.submit_run(WORK_S) for _ in range(AHEAD)]
        with server.subscribe(type=["run_started", *TERMINAL_EVENTS]) as events:
            while len(targets) < shots:
                event = events.get(60.0)
                assert event is not None, f"nothing happens any more, after {len(targets)} shots"
                run_id = waiting[0]
                if event.run_id != run_id:
                    continue
                if event.type != "run_started":
                    if run_id in targets:
                        aim.correct(was_late=event.type == "run_completed")
                    waiting.pop(0)
                    waiting.append(server.submit_run(WORK_S))
                # every second run is a target, and the one behind it is not
                elif server.get_run(run_id).position % 2:
                    aim.wait()
                    shoot(asm, server, run_id)
                    targets.add(run_id)
        server.drain(timeout=120.0)
        return server, targets

    shares = [SHOTS // LANES] * LANES
    with ThreadPoolExecutor(LANES) as pool:
        lanes = list(pool.map(lane, shares))

    fates: Counter[str] = Counter()
    wrong = []
    for server, targets in lanes:
        after = None
        while page := server.list_runs(after=after, limit=1000):
            after = page[-1].run_id
            for run in page:
                fates[f"{'aimed at' if run.run_id in targets else 'innocent'}, {run.status}"] += 1
                allowed = {RunStatus.COMPLETED}
                if run.run_id in targets:
                    allowed.add(RunStatus.CANCELLED)
                if run.status not in allowed or run.attempt > 1:
                    wrong.append(f"{run.run_id}: {run.status} in attempt {run.attempt}, {run.error}")
    record_property("fates", dict(fates))
    assert [] == wrong
    assert max(Counter(ledger.entered()).values()) == 1
    assert not living.has_ended
