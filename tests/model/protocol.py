"""The protocol as a graph: every step any actor can take from a state, with the real scripts as Redis.

Modelled: SQL (the guards of `store/runs.py`), doorbells in flight, what each process has committed and not
yet told.  Not modelled: events, inputs, clocks; a time that has not come may come at any moment.
Each step is one transaction or one script, as in `coordinator`, `recovery`, `restore` and `stopping`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.arbitration import Arbitration
from tests.model.spec import Spec

PENDING, RUNNING, DONE = "pending", "running", "done"
IDLE: tuple[object, ...] = ()
DEAD = ("dead",)


class Row(NamedTuple):
    """A run in SQL."""

    status: str
    claims: int = 0
    attempt: int = 0
    executor: str = ""
    waits: bool = False


class State(NamedTuple):
    """Everything that decides what can happen next."""

    redis: int
    rows: tuple[Row | None, ...]
    letters: frozenset[tuple[object, ...]]
    bells: frozenset[tuple[int, int]]
    doing: tuple[tuple[object, ...], ...]
    left: tuple[tuple[str, int], ...]


class Step(NamedTuple):
    """One move; `broken` says which promise it breaks, `is_fault` that nobody may count on it."""

    label: str
    state: State
    is_fault: bool = False
    broken: str = ""
