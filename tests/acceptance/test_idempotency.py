"""An idempotency key names one run of a session, for ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from asm_celery import AgentSessions, errors
from tests.acceptance.conftest import StartWorker
from tests.acceptance.elsewhere import Elsewhere, together
from tests.acceptance.ledger import Ledger

TIMES, PROCESSES = 100, 2


def test_the_same_key_a_hundred_times_at_once_is_one_run(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, ledger: Ledger
) -> None:
    """50 threads in each of two processes submit it: 100 equal ids, one row, executed once."""
    worker(pool="threads")
    server = asm.start_session("echo", max_queued_runs=0)
    racers = [
        Elsewhere(
            "submit",
            env,
            session_id=server.session_id,
            inputs=[{"order": 7}] * (TIMES // PROCESSES),
            threads=TIMES // PROCESSES,
            idempotency_key="order-7",
        )
        for _ in range(PROCESSES)
    ]

    answers = [answer for part in together(racers) for answer in part]

    (run_id,) = {answer.get("run_id") for answer in answers}
    assert TIMES == len(answers)
    assert {"order": 7} == server.await_run(run_id).output
    assert [run_id] == [run.run_id for run in server.list_runs()]
    assert [run_id] == ledger.entered()
    # also when it has ended, and also where a new run would have no room
    assert run_id == server.submit_run({"order": 7}, idempotency_key="order-7")
    types = [event.type for event in server.get_events(run_id=run_id)]
    assert ["run_queued", "run_started", "run_completed"] == types


def test_the_same_key_with_another_input_is_a_conflict(asm: AgentSessions) -> None:
    """The refusal names the run that has the key, and nothing is written."""
    server = asm.start_session("echo")
    run_id = server.submit_run({"a": 1, "b": 2}, idempotency_key="key")

    with pytest.raises(errors.IdempotencyConflict) as refused:
        server.submit_run({"a": 1, "b": 3}, idempotency_key="key")

    assert "idempotency_conflict" == refused.value.code
    assert run_id == refused.value.details["run_id"]
    # equal JSON is equal input, whatever the order of its keys
    assert run_id == server.submit_run({"b": 2, "a": 1}, idempotency_key="key")
    assert [run_id] == [run.run_id for run in server.list_runs()]
    assert 3 == len(server.get_events())


def test_of_racing_inputs_under_one_key_one_wins(asm: AgentSessions) -> None:
    """Different inputs at once: one run, its input's submitters get it, all others the conflict."""
    server = asm.start_session("echo")

    def submit(number: int) -> tuple[int, str]:
        try:
            return number % 2, server.submit_run(number % 2, idempotency_key="key")
        except errors.IdempotencyConflict as conflict:
            return number % 2, f"conflict with {conflict.details['run_id']}"

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(submit, range(32)))

    (run,) = server.list_runs()
    assert {(run.input, run.run_id), (1 - run.input, f"conflict with {run.run_id}")} == answers


def test_a_key_belongs_to_its_session(asm: AgentSessions) -> None:
    """Another session may use the same key for a run of its own."""
    one, other = asm.start_session("echo"), asm.start_session("echo")

    runs = {server.submit_run("x", idempotency_key="key") for server in (one, other)}

    assert 2 == len(runs)


@pytest.mark.parametrize("key", ["", "k" * 256, 7])
def test_a_key_that_is_no_short_text_is_refused(asm: AgentSessions, key: object) -> None:
    """A key has 1 to 255 characters."""
    server = asm.start_session("echo")

    with pytest.raises(errors.ValidationError):
        server.submit_run("x", idempotency_key=key)  # type: ignore[arg-type]

    assert [] == server.list_runs()
