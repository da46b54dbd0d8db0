"""PostgreSQL is killed again and again under load: what was acknowledged is there once, and everyone hears of it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from asm_celery import AgentSessions, Event, SessionServer, errors
from asm_celery.config import Config
from tests.acceptance.ledger import VARIABLE
from tests.checkers.check import check
from tests.checkers.collect import collect
from tests.checkers.record import Awaited, Submit, Transcript
from tests.conftest import _missing, environment
from tests.faults.stores import PostgresServer
from tests.servers import ServerUnavailable
from tests.waiting import wait_until
from tests.workers import WorkerProcess

FULL = bool(os.environ.get("ASM_TEST_FULL"))
SECONDS = 120.0 if FULL else 0.0
KILLS = 3
PAUSES_S = (1.0, 4.0) if FULL else (0.5, 1.5)
SESSIONS = 6 if FULL else 3
CHAT = {"do": "chat", "events": 40, "breath_s": 0.05}
T = TypeVar("T")


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that writes to its disk, as in production, and can be started again on its data."""
    try:
        server = PostgresServer()
    except ServerUnavailable as cause:
        _missing(str(cause))
    yield server
    server.stop()


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """The database of this module's installations."""
    return postgres.url


@dataclass
class Seen:
    """What the callers saw; lists only grow, so threads share them."""

    submits: list[Submit] = field(default_factory=list)
    awaited: list[Awaited] = field(default_factory=list)
    transcripts: list[Transcript] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def until_it_works(self, call: Callable[[], T]) -> T:
        """Do what a caller does: try again while the error says that this may help."""
        while True:
            try:
                return call()
            except errors.AsmError as cause:
                if not cause.retryable:
                    raise
                self.refused.append(cause.code)
                time.sleep(random.uniform(0.05, 0.2))

    def submit(self, server: SessionServer) -> None:
        """Submit runs under keys until it is over, then see all of them to their end."""
        accepted = []
        while not self.is_over.is_set():
            key, called = uuid4().hex, time.monotonic()

            def ask(key: str = key) -> str:
                return server.submit_run(CHAT, idempotency_key=key)

            run_id = self.until_it_works(ask)
            done = Submit(
                session_id=server.session_id, called=called, returned=time.monotonic(), run_id=run_id, key=key
            )
            self.submits.append(done)
            accepted.append(run_id)
            # a caller that waits for its answer, and others that do not
            self.is_over.wait(random.uniform(0.0, 1.0))
        for run_id in accepted:
            result = self.until_it_works(lambda run_id=run_id: server.await_run(run_id, timeout=300))  # type: ignore[misc]
            self.awaited.append(Awaited(run_id=run_id, status=result.status.value, output=result.output))

    def follow(self, server: SessionServer, per_connection: int) -> None:
        """Receive everything; after so many events, drop the connection and resume by its cursor."""
        received: list[tuple[int, str]] = []
        place: int | str = 0
        has_ended = False
        while not has_ended:
            with self.until_it_works(lambda place=place: server.subscribe(from_sequence=place)) as events:  # type: ignore[misc]
                for _ in range(per_connection):
                    event: Event | None = self.until_it_works(events.get)
                    if event is None:
                        has_ended = True
                        break
                    received.append((event.sequence, event.event_id))
                place = events.cursor or 0
        self.transcripts.append(
            Transcript(
                subscriber=f"every {per_connection}",
                session_id=server.session_id,
                after=0,
                received=received,
                is_whole=True,
            )
        )


@pytest.mark.timeout(900)
def test_a_database_killed_again_and_again_loses_and_doubles_nothing(
    config: Config,
    postgres: PostgresServer,
    start_worker: Callable[..., WorkerProcess],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Every accepted run completes once, each event is there once, awaiters and subscribers get all of it."""
    config = config.model_copy(update={"lease_s": 8.0, "connect_timeout_s": 2.0, "ring_s": 1.0})
    ledger = tmp_path / "ledger.txt"
    env: dict[str, Any] = {**environment(config), VARIABLE: str(ledger)}
    for pool in ("prefork", "threads"):
        start_worker("tests.faults.agents", pool=pool, concurrency=3, env=env)
    seen = Seen()

    with AgentSessions(config) as asm, ThreadPoolExecutor(3 * SESSIONS) as callers:
        servers = [asm.start_session("mix", max_queued_runs=1000) for _ in range(SESSIONS)]
        submitting = [callers.submit(seen.submit, server) for server in servers]
        following = [callers.submit(seen.follow, one, every) for one in servers for every in (10**9, 37)]
        kills, began = 0, time.monotonic()
        try:
            while kills < KILLS or time.monotonic() - began < SECONDS:
                goal = len(seen.submits) + 2
                wait_until(
                    lambda goal=goal: len(seen.submits) >= goal, description="work goes on", timeout=60
                )  # type: ignore[misc]
                time.sleep(random.uniform(*PAUSES_S))
                postgres.kill()
                time.sleep(random.uniform(0.0, 1.0))
                postgres.start()
                kills += 1
        finally:
            seen.is_over.set()
        lasted = time.monotonic() - began
        try:
            for one in submitting:
                one.result(timeout=400)
            for server in servers:
                seen.until_it_works(server.complete)
            for one in following:
                one.result(timeout=120)
        except BaseException:
            # who follows a session that does not complete would follow it for ever
            asm.close()
            raise

    history = collect(
        config, ledger=ledger, submits=seen.submits, awaited=seen.awaited, transcripts=seen.transcripts
    )
    events = sum(map(len, history.events.values()))
    record_property(
        "figures",
        f"{kills} kills in {lasted:.0f} s: {len(seen.submits)} runs, {events} events, "
        f"{len(seen.transcripts)} transcripts, {len(seen.refused)} refusals that were tried again",
    )
    assert [] == [one for one in check(history) if one.kind != "leak"]
    assert {("completed", CHAT["events"])} == {(one.status, one.output) for one in seen.awaited}
    assert len(seen.submits) == len(seen.awaited) == len(history.runs)
    assert 2 * SESSIONS == len(seen.transcripts)
