"""The search's model of the claim in SQL is the claim in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from sqlalchemy import update

from asm_celery.config import Config
from asm_celery.model import Run
from asm_celery.store.database import Transaction
from asm_celery.store.tables import runs
from tests.model.state import DONE, PENDING, RUNNING, Row, claim_guards, is_open
from tests.world import World

_BACK_OFF = timedelta(minutes=1)


class _Undo(Exception):
    """Leaves a transaction, so that it is rolled back."""


@pytest.mark.parametrize("slots", [1, 2])
def test_model_claims_exactly_what_the_store_claims(config: Config, slots: int) -> None:
    """For all statuses of three runs, each run, claim number and back-off: the same answer."""
    world = World(config, slots=0)
    session = world.session(max_concurrent_runs=slots)
    ids = [world.submit(session) for _ in range(3)]
    different = []

    for statuses, target, claim, waits in product(
        product((PENDING, RUNNING, DONE), repeat=3), range(3), (1, 2, 3), (False, True)
    ):
        rows = tuple(
            Row(status, claims=1, waits=waits and number == target) for number, status in enumerate(statuses)
        )
        expected = all(claim_guards(rows, [0, 1, 2], slots, target, claim).values())
        with _undone(world) as tx:
            for run_id, row in zip(ids, rows, strict=True):
                _write(tx, run_id, row)
            claimed = tx.runs.claim(ids[target], claim, executor="e0", nonce="nonce")
        if expected != _is_started(claimed, claim):
            different.append((statuses, target, claim, waits, expected))

    world.close()
    assert [] == different


def _is_started(claimed: Run | None, claim: int) -> bool:
    return claimed is not None and (claimed.status, claimed.claims) == (RUNNING, claim)


def _write(tx: Transaction, run_id: str, row: Row) -> None:
    ended = None if is_open(row) else datetime.now(UTC)
    tx.runs._connection.execute(
        update(runs)
        .where(runs.c.run_id == run_id)
        .values(
            status="completed" if row.status == DONE else row.status,
            claims=row.claims,
            ended_at=ended,
            not_before=datetime.now(UTC) + _BACK_OFF if row.waits else None,
        )
    )


@contextmanager
def _undone(world: World) -> Iterator[Transaction]:
    try:
        with world.runtime.store.transaction() as tx:
            yield tx
            raise _Undo
    except _Undo:
        return
