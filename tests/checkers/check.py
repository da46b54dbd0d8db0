"""`check`: every checker over one history, by the name of what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.checkers import doors, log, outside
from tests.checkers.record import Anomaly, History

Checker = Callable[[History], Iterator[str]]

CHECKERS: Final[Mapping[str, Checker]] = {
    "lost": doors.lost,
    "submit order": doors.submits_out_of_order,
    "idempotency": doors.keys_with_two_runs,
    "stop": doors.stops_that_did_not_hold,
    "await": doors.awaits_that_differ,
    "transcript": doors.transcripts_that_differ,
    "sequence": log.sequences_with_holes,
    "ending": log.endings_that_disagree,
    "order": log.starts_out_of_order,
    "fence": log.stale_writes,
    "append": log.appends_lost_or_doubled,
    "entries": outside.entries_beyond_the_policy,
    "overlap": outside.overlaps_in_a_session,
    "limit": outside.limit_excess,
    "false death": outside.false_deaths,
    "recovery": outside.recoveries_too_slow,
    "leak": outside.leaks,
}


def check(history: History) -> list[Anomaly]:
    """Return everything in the history that breaks a promise; empty when nothing does."""
    return [Anomaly(kind, text) for kind, checker in CHECKERS.items() for text in checker(history)]
