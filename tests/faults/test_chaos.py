"""The bounded chaos run, at full size, and what makes a chaos run worth its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.conftest import FULL
from tests.faults.__main__ import chaos
from tests.faults.kinds import KINDS
from tests.faults.preset import SLACK

MINUTES = 22.0
REPORT = Path(__file__).resolve().parents[2] / "docs" / "reports" / "chaos-postgresql.md"


def test_there_are_at_least_thirty_kinds_of_faults_on_each_database() -> None:
    """What is not broken here was never shown to hold."""
    on = {
        database: [k for k in KINDS.values() if k.on in (None, database)]
        for database in ("postgresql", "sqlite")
    }

    assert all(len(kinds) >= 30 for kinds in on.values())
    assert all(len({kind.of for kind in kinds}) >= 8 for kinds in on.values())
    assert all(kind.does for kind in KINDS.values())


@pytest.mark.skipif(not FULL, reason="takes 25 minutes; a small one is the stage chaos of .ci/run")
@pytest.mark.timeout(3600)
def test_every_promise_holds_under_250_faults(record_property: Callable[[str, object], None]) -> None:
    """Nothing accepted is lost, doubled, overtaken or let run twice, and recovery is bounded, whatever breaks."""
    verdict = chaos(seed=4, minutes=MINUTES, faults=400, database="postgresql", report=REPORT)

    record_property("faults", len(verdict.history.faults))
    record_property("runs", len(verdict.history.runs))
    record_property("events", verdict.events)
    assert Counter() == Counter(anomaly.kind for anomaly in verdict.anomalies), verdict.anomalies[:20]
    assert len(verdict.history.faults) >= 250
    assert len({fault.kind for fault in verdict.history.faults}) >= 30
    assert len(verdict.history.runs) >= 3_000
    assert verdict.events >= 300_000
    assert all(
        fault.recovered_s is not None and fault.recovered_s <= (fault.bound_s or SLACK)
        for fault in verdict.history.faults
    )
