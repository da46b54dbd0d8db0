"""Floods: of submits, of events, of subscribers.  What is too much is refused at once, and memory has bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import redis

from asm_celery import AgentSessions, Event, SessionServer
from asm_celery.config import Config
from asm_celery.states import RunStatus
from tests.acceptance.conftest import FULL, StartWorker, ledger, worker
from tests.acceptance.elsewhere import Elsewhere, peak_mb
from tests.acceptance.test_redis_away import OwnRedis, own_redis
from tests.conftest import environment
from tests.history import anomalies, most_open
from tests.waiting import wait_until
from tests.workers import WorkerProcess

# fixtures of the acceptance tests that are the same here
__all__ = ["ledger", "own_redis", "worker"]

pytestmark = [pytest.mark.either_database, pytest.mark.timeout(1800 if FULL else 120)]

SUBMITS, SESSIONS, MAX_QUEUED = (50_000, 100, 20) if FULL else (1_000, 10, 10)
CLIENT_THREADS = 4
WORDS, SUBSCRIBERS = 2_000, 1_000 if FULL else 40

# A refusal takes less than 100 ms; what is left to busy cores is times 3.
REFUSED_MS, TIMES = 100.0, 3
# How much a process may grow by a flood, and what Redis may hold at most.
GROWS_MB, REDIS_MB = 64.0, 32.0
# Nobody is to be taken for dead here, and a process that is starved of its core must not leave.
PATIENT = {"lease_s": 30.0, "beat_s": 3.0}
WAIT_S = 600 if FULL else 60
Tell = Callable[[str, object], None]


class Memory:
    """The processes of a worker and their peaks of memory."""

    def __init__(self, process: WorkerProcess) -> None:
        main = psutil.Process(process.pid)
        self._pids = [main.pid, *(child.pid for child in main.children(recursive=True))]
        self._before = self._peaks()

    def told(self, tell: Tell) -> float:
        """Report what it had at most, all of it together; return what the one that grew most has grown."""
        after = self._peaks()
        grown = [after[pid] - self._before[pid] for pid in self._pids]
        tell("worker, MiB before", f"{sum(self._before.values()):.0f}")
        tell("worker, MiB at its peak", f"{sum(after.values()):.0f} in {len(self._pids)} processes")
        tell("the process of it that grew most, MiB", f"{max(grown):.1f}")
        return max(grown)

    def _peaks(self) -> dict[int, float]:
        return {pid: peak_mb(pid) for pid in self._pids}


def every_run(server: SessionServer) -> dict[str, RunStatus]:
    """The status of each run of a session."""
    found: dict[str, RunStatus] = {}
    while page := server.list_runs(after=next(reversed(found), None), limit=1000):
        found |= {run.run_id: run.status for run in page}
    return found


def every_event(server: SessionServer) -> list[Event]:
    """A session's whole log."""
    found: list[Event] = []
    while page := server.get_events(after=len(found), limit=1000):
        found += page
    return found


def left_of_runs(config: Config) -> list[str]:
    """The keys in Redis that tell of a run or a session."""
    shared = {f"{config.keys.root}{name}" for name in ("known", "leases", "active", "dispatched", "delayed")}
    with redis.Redis.from_url(config.redis_url, decode_responses=True) as client:
        return [
            key
            for key in client.scan_iter(count=1000)
            if key in shared or "run_" in key or "ses_" in key or ":line:" in key
        ]


def redis_peak_mb(url: str) -> float:
    """The most memory that a server has had for its data and buffers."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory_peak"]) / (1 << 20)


def test_a_flood_of_submits_is_refused_at_once_and_what_was_accepted_ends(
    config: Config, worker: StartWorker, own_redis: OwnRedis, record_property: Tell
) -> None:
    """No session holds more than its bound, refusals are quick, and neither side's memory grows with them."""
    config = config.model_copy(update={"redis_url": own_redis.url, **PATIENT})
    memory = Memory(worker(pool="prefork", redis_url=own_redis.url, **PATIENT))
    with AgentSessions(config) as asm:
        servers = [asm.start_session("echo", max_queued_runs=MAX_QUEUED) for _ in range(SESSIONS)]
        client = Elsewhere(
            "flood",
            environment(config),
            sessions=[server.session_id for server in servers],
            count=SUBMITS,
            threads=CLIENT_THREADS,
        )

        with client:
            told: dict[str, Any] = client.go().answer()
        for server in servers:
            server.drain(timeout=WAIT_S)

        accepted = sum(map(len, told["accepted"].values()))
        record_property("submits a second", f"{SUBMITS / told['seconds']:.0f}")
        record_property("accepted, refused", f"{accepted}, {told['refused']}")
        for word, spread in told["took_ms"].items():
            record_property(f"{word}: ms median, p99, max", ", ".join(map(str, spread.values())))
        record_property("client, MiB before and at its peak", "{:.0f}, {:.0f}".format(*told["mb"]))
        record_property("Redis, MiB at its peak", f"{redis_peak_mb(own_redis.url):.1f}")
        grown = memory.told(record_property)
        wait_until(
            lambda: not left_of_runs(config),
            description="Redis has forgotten every run and session",
            timeout=60,
        )
        assert SUBMITS == accepted + told["refused"]
        assert told["refused"] > 0
        for server in servers:
            ended = every_run(server)
            assert set(told["accepted"][server.session_id]) == ended.keys()
            assert {RunStatus.COMPLETED} == set(ended.values())
        events = every_event(servers[0])
        assert [] == anomalies(events, slots=1)
        assert most_open(events) <= MAX_QUEUED + 1
        # a hundred refusals of the quick form say little of the slowest on a busy machine
        assert told["took_ms"]["refused"]["p99" if FULL else "median"] < REFUSED_MS * TIMES
        assert told["mb"][1] - told["mb"][0] < GROWS_MB
        assert grown < GROWS_MB
        assert redis_peak_mb(own_redis.url) < REDIS_MB


def test_a_chatty_agent_and_a_crowd_that_reads_slowly_lose_nothing_and_have_bounded_memory(
    config: Config, worker: StartWorker, own_redis: OwnRedis, record_property: Tell
) -> None:
    """Its events are more than any buffer; the crowd reads none of them until all are there."""
    config = config.model_copy(update={"redis_url": own_redis.url, "subscriber_buffer": 100, **PATIENT})
    memory = Memory(worker("tests.faults.agents", pool="threads", redis_url=own_redis.url, **PATIENT))
    # the sessions are closed first: who follows ends with them, also when the run has failed
    with ThreadPoolExecutor(1) as thread, AgentSessions(config) as asm:
        server = asm.start_session("mix")
        crowd = Elsewhere("crowd", environment(config), session_id=server.session_id, subscribers=SUBSCRIBERS)
        with crowd:
            assert SUBSCRIBERS == crowd.go().answer()
            live = thread.submit(lambda: [event.sequence for event in server.subscribe()])
            began = time.perf_counter()
            run_id = server.submit_run({"do": "chat", "events": WORDS, "breath_s": 0})
            server.await_run(run_id, timeout=WAIT_S)
            took_s = time.perf_counter() - began
            server.complete()
            seen = live.result(timeout=WAIT_S)

            began = time.perf_counter()
            told: dict[str, Any] = crowd.again()
            read_s = time.perf_counter() - began

        last = every_event(server)[-1].sequence
        record_property("events a second", f"{WORDS / took_s:.0f}")
        record_property("events that the crowd read a second", f"{SUBSCRIBERS * last / read_s:.0f}")
        record_property("crowd, MiB before and at its peak", "{:.0f}, {:.0f}".format(*told["mb"]))
        record_property("Redis, MiB at its peak", f"{redis_peak_mb(own_redis.url):.1f}")
        grown = memory.told(record_property)
        assert WORDS < last
        assert list(range(1, last + 1)) == seen
        assert [list(range(2, last + 1))] == told["transcripts"]
        assert told["mb"][1] - told["mb"][0] < GROWS_MB
        assert grown < GROWS_MB
        assert redis_peak_mb(own_redis.url) < REDIS_MB
