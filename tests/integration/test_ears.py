"""A worker that hears no doorbells although they wait starts anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from asm_celery import AgentSessions
from asm_celery.config import Config
from asm_celery.worker.ears import Ears, Hearing
from tests.acceptance.conftest import FULL
from tests.conftest import environment
from tests.waiting import wait_until
from tests.workers import WorkerProcess


class Ward:
    """What a pair of ears looks at."""

    def __init__(self) -> None:
        self.free, self.waits, self.away, self.hearing = True, 1, False, Hearing()
        self.ears = Ears(
            30.0,
            is_free=lambda: self.free,
            waiting=self.count,
            taken=self.hearing.taken,
            on_deaf=lambda: None,
        )

    def count(self) -> int:
        if self.away:
            raise ConnectionError("no broker")
        return self.waits


def test_messages_that_wait_while_it_is_free_mean_deafness() -> None:
    """Only if they wait at every look for the whole time."""
    ward = Ward()

    assert [False, False, True] == [ward.ears.look(at) for at in (0.0, 29.0, 30.0)]


@pytest.mark.parametrize("what", ["busy", "empty", "away", "taken"])
def test_what_is_no_deafness_starts_the_count_anew(what: str) -> None:
    """A busy executor, an empty queue, a broker that is away, a message that was taken, whatever it was."""
    ward = Ward()
    ward.ears.look(0.0)
    ward.free, ward.waits, ward.away = what != "busy", int(what != "empty"), what == "away"
    if what == "taken":
        ward.hearing.note()
    assert not ward.ears.look(20.0)
    ward.free, ward.waits, ward.away = True, 1, False

    assert [False, False, True] == [ward.ears.look(at) for at in (31.0, 60.0, 61.0)]


@pytest.mark.parametrize("pool", ["prefork", "threads"] if FULL else ["threads"])
def test_a_deaf_worker_starts_anew_and_executes_what_waited(
    sqlite_config: Config, start_worker: Callable[..., WorkerProcess], tmp_path: Path, pool: str
) -> None:
    """It says so, ends in good order, becomes a new worker under its process id, and the run completes."""
    env = {**environment(sqlite_config), "ASM_TEST_MARK": str(tmp_path / "deaf")}
    deaf = start_worker("tests.integration.deaf_worker", env=env, pool=pool, concurrency=1)
    with AgentSessions(sqlite_config) as asm:
        run = asm.start_session("echo").submit_run("hear me")

        wait_until(lambda: asm.get_run(run).is_terminal, description="the run was executed", timeout=90)

        assert "hear me" == asm.get_run(run).output
    assert "this worker hears none" in deaf.log
    assert 2 == deaf.log.count(" ready.")
    assert not deaf.has_ended
