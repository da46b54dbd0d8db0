"""Celery's own revoke, from Flower, `celery control` or Python, ends as an ordinary cancel of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from tests.waiting import wait_until
from tests.workers import WorkerProcess


def test_a_revoked_run_that_waits_is_cancelled_and_holds_nothing(
    sqlite_config: Config, start_worker: Callable[..., WorkerProcess]
) -> None:
    """Its doorbell lies in the broker behind a busy worker; once a worker hears the revoke, the run has ended."""
    start_worker("workers.app", pool="prefork", concurrency=1)
    with AgentSessions(sqlite_config) as asm:
        busy, waiting = asm.start_session("sleeper"), asm.start_session("echo")
        first = busy.submit_run(1.5)
        wait_until(lambda: busy.status().in_flight_count, description="the worker is busy")
        revoked = waiting.submit_run("never")

        asm.celery_app.control.revoke(revoked)

        with pytest.raises(errors.RunCancelled):
            waiting.await_run(revoked, timeout=20)
        assert "revoked" == asm.get_run(revoked).stop_reason
        assert 1.5 == busy.await_run(first, timeout=20).output
        assert "next" == waiting.execute_run("next", timeout=20).output
        wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="no slot is held")
