"""Redis loses everything in mid-load, or is away for long and comes back empty: nothing accepted is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from asm_celery import AgentSessions
from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.runtime import Runtime
from asm_celery.states import RunStatus
from tests.acceptance.conftest import FULL, Gate, StartWorker, asm, gate, ledger, worker
from tests.acceptance.ledger import Ledger
from tests.acceptance.test_redis_away import OwnRedis, own_redis
from tests.checkers import check
from tests.checkers.collect import collect
from tests.waiting import wait_until
from tests.world import RecordingDispatcher

# fixtures of the acceptance tests that are the same here
__all__ = ["asm", "gate", "ledger", "own_redis", "worker"]

pytestmark = [pytest.mark.either_database, pytest.mark.timeout(1500 if FULL else 120)]

SESSIONS = 1000 if FULL else 40
EACH = 3
LIMIT = 5
# Normal service is promised within 10 s; the rest is left to two busy cores.
SERVICE_S, TIMES = 10.0, 3


@pytest.fixture
def runtime(config: Config) -> Iterator[Runtime]:
    """What a doctor looks with."""
    made = Runtime(config, AgentRegistry(), RecordingDispatcher())
    yield made
    made.close()


def drained(asm: AgentSessions, config: Config, runs: list[str]) -> None:
    """Wait until all of these runs have ended, and all of them well."""

    def are_done() -> bool:
        ended = {
            run.run_id: run.status for run in (asm.get_run(run_id) for run_id in runs) if run.is_terminal
        }
        assert {RunStatus.COMPLETED} >= set(ended.values())
        runs[:] = [run_id for run_id in runs if run_id not in ended]
        return not runs

    wait_until(are_done, description="every run has completed", timeout=900 if FULL else 120)


def test_a_flush_in_mid_load_costs_seconds_and_nothing_else(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, config: Config, runtime: Runtime
) -> None:
    """Order, slots and limit hold, runs are entered again soon, all complete, and the doctor finds nothing."""
    asm.limiter.set_limits(max_parallel_runs=LIMIT, max_parallel_sessions=SESSIONS)
    # all is submitted before anything runs: what is quicker than its submits is no load
    sessions = [asm.start_session("work") for _ in range(SESSIONS)]
    runs = [session.submit_run(0.02 if FULL else 0.1) for session in sessions for _ in range(EACH)]
    for _ in range(2):
        worker(pool="threads", concurrency=4)
    wait_until(lambda: len(ledger.entered()) > SESSIONS // 4, description="the load is under way", timeout=60)

    with redis.Redis.from_url(config.redis_url) as client:
        client.flushall()
    flushed = time.monotonic()

    # what had begun before the flush may be entered after it, but no more than the limit of them
    def is_served() -> bool:
        since = [entry for entry in ledger.entries() if entry.what == "enter" and entry.at > flushed]
        return len(since) > 2 * LIMIT or set(runs) == set(ledger.entered())

    wait_until(is_served, description="runs are entered again", timeout=SERVICE_S * TIMES)
    drained(asm, config, list(runs))
    history = collect(config, ledger=ledger.path)
    assert [] == [anomaly for anomaly in check(history) if anomaly.kind != "leak"]
    assert LIMIT >= ledger.most_at_once()
    assert sorted(runs) == sorted(ledger.entered())
    wait_until(lambda: not runtime.comparison.confirmed(), description="the doctor finds nothing")
    assert (0, 0) == (asm.limiter.get_status().active_runs, asm.limiter.get_status().active_sessions)


def test_redis_away_for_long_and_back_empty_loses_nothing(
    config: Config, own_redis: OwnRedis, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """What runs finishes, what is submitted meanwhile starts later, and nobody is taken for dead."""
    # on a busy machine a beat in SQL may be late by a second
    clocks = {"connect_timeout_s": 1.0, "lease_s": 4.0}
    away_s = 20.0 if FULL else 2 * 4.0
    settings = config.model_copy(update={"redis_url": own_redis.url, **clocks})
    with AgentSessions(settings) as here:
        for _ in range(2):
            worker(pool="threads", concurrency=4, redis_url=own_redis.url, **clocks)
        held = [here.start_session("gate") for _ in range(4)]
        running = [session.submit_run({"gate": str(gate)}) for session in held]
        lines = [here.start_session("work") for _ in range(20)]
        runs = [session.submit_run(0.02) for session in lines for _ in range(2)]
        wait_until(lambda: set(running) <= set(ledger.entered()), description="four runs are in flight")

        own_redis.take_away()
        gone = time.monotonic()
        runs += [session.submit_run(0.02) for session in lines]
        wait_until(lambda: time.monotonic() > gone + away_s, description="time passes", timeout=away_s + 60)
        assert {RunStatus.RUNNING} == {here.get_run(run_id).status for run_id in running}
        gate.open()
        drained(here, settings, list(running))
        own_redis.give_back()

        drained(here, settings, list(runs))
        history = collect(settings, ledger=ledger.path)
        assert [] == [anomaly for anomaly in check(history) if anomaly.kind != "leak"]
        assert sorted(running + runs) == sorted(ledger.entered())


def test_a_worker_does_not_start_on_a_redis_that_evicts(
    sqlite_config: Config, own_redis: OwnRedis, start_worker: StartWorker
) -> None:
    """It says why, and what to set; told to, it starts."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    env = {"ASM_REDIS_URL": own_redis.url, "ASM_DATABASE_URL": sqlite_config.database_url}

    with pytest.raises(AssertionError, match="maxmemory-policy noeviction"):
        start_worker(env=env, pool="threads")

    start_worker(env={**env, "ASM_ALLOW_EVICTION": "true"}, pool="threads")
