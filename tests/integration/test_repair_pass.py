"""How long a repair pass takes when thousands of runs are alive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from sqlalchemy import insert

from asm_celery.config import Config
from asm_celery.model import new_id
from asm_celery.store.tables import instant_in, runs, session_counters, sessions
from tests.world import World

IS_FULL: Final = bool(os.environ.get("ASM_TEST_FULL"))
LIVE: Final = 10_000 if IS_FULL else 500
# what is promised of 10,000 on an idle machine, and what is left to two busy cores
BOUND_S, TIMES = 1.0, 3

pytestmark = pytest.mark.either_database


@pytest.fixture
def crowded(config: Config) -> Iterator[World]:
    """An installation in which `LIVE` runs execute, each of a session of its own, and Redis holds a lease of each."""
    world = World(config.model_copy(update={"max_parallel_runs": LIVE, "max_parallel_sessions": LIVE}))
    fill(world, LIVE)
    world.runtime.recovery._comparison.compare()
    # a running run is written when it is missing at two looks
    world.runtime.recovery._comparison.compare()
    assert LIVE == len(world.runtime.queue.observe())
    yield world
    world.close()


@pytest.mark.breaks_invariants
@pytest.mark.timeout(300)
def test_a_pass_over_all_live_runs_takes_less_than_a_second(
    crowded: World, record_property: Callable[[str, object], None]
) -> None:
    """10,000 leases with their beats, and the running rows: every worker looks every `repair_s`."""
    recovery = crowded.runtime.recovery
    took = {"a pass": [], "a comparison": []}

    for _ in range(5):
        took["a pass"].append(timed(recovery.repair))
        took["a comparison"].append(timed(recovery._comparison.compare))

    record_property("seconds", f"{LIVE} live: " + ", ".join(f"{k} {min(v):.3f}" for k, v in took.items()))
    assert min(took["a pass"]) < BOUND_S * TIMES
    assert min(took["a comparison"]) < BOUND_S * TIMES


@pytest.mark.breaks_invariants
@pytest.mark.timeout(300)
def test_a_pass_in_which_all_live_runs_are_silent_for_long_is_quick_too(
    crowded: World, record_property: Callable[[str, object], None]
) -> None:
    """Their witness in SQL is asked in pages; nobody is dead as long as it vouches."""
    recovery, vouchers = crowded.runtime.recovery, []
    quiet = crowded.runtime.queue.observe()

    took_s = timed(lambda: vouchers.append(recovery._vouchers(quiet)))

    record_property("seconds", f"{LIVE} silent: {took_s:.3f}")
    assert LIVE == len(vouchers[0])
    assert took_s < BOUND_S * TIMES


def timed(act: Callable[[], object]) -> float:
    """Return how long it took."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def fill(world: World, count: int) -> None:
    """Write running runs of a living executor, past all moves."""
    ids = [(new_id("ses"), new_id("run")) for _ in range(count)]
    with world.runtime.log.transaction() as tx:
        connection = tx.runs._connection
        tx.executors.beat("alive", "worker")
        for at in range(0, count, 500):
            page = ids[at : at + 500]
            connection.execute(
                insert(sessions).values(created_at=instant_in(0), updated_at=instant_in(0)),
                [
                    {
                        "session_id": session_id,
                        "agent": "agent",
                        "max_concurrent_runs": 1,
                        "max_queued_runs": 9,
                        "metadata": "{}",
                    }
                    for session_id, _ in page
                ],
            )
            connection.execute(
                insert(session_counters), [{"session_id": one, "last_position": 1} for one, _ in page]
            )
            connection.execute(
                insert(runs).values(created_at=instant_in(0), started_at=instant_in(0)),
                [
                    {
                        "run_id": run_id,
                        "session_id": session_id,
                        "position": 1,
                        "agent": "agent",
                        "queue": world.config.default_queue,
                        "status": "running",
                        "input": "null",
                        "input_digest": "",
                        "metadata": "{}",
                        "max_attempts": 1,
                        "attempt": 1,
                        "claims": 1,
                        "claim_nonce": "nonce",
                        "executor": "alive",
                    }
                    for session_id, run_id in page
                ],
            )
