"""Checkers of histories: what a run of the whole system, under faults or not, has to be true of.

`record.History` holds what was seen from outside (rows, the agents' ledger, transcripts, acknowledgements);
`check` judges it and trusts nothing else.  `collect.collect` reads one from the servers.
"""

from __future__ import annotations

from tests.checkers.check import CHECKERS, check
from tests.checkers.record import (
    Anomaly,
    Awaited,
    Fault,
    History,
    LimitChange,
    Logged,
    RunRow,
    SessionRow,
    Stop,
    Submit,
    Transcript,
)

__all__ = [
    "CHECKERS",
    "Anomaly",
    "Awaited",
    "Fault",
    "History",
    "LimitChange",
    "Logged",
    "RunRow",
    "SessionRow",
    "Stop",
    "Submit",
    "Transcript",
    "check",
]
