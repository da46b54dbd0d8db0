"""What decides the future of the protocol, and the pure functions on it: SQL's guards among them."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model.spec import CHANCES

PENDING, RUNNING, DONE = "pending", "running", "done"
IDLE: tuple[Any, ...] = ()
DEAD: tuple[Any, ...] = ("dead",)
ACTIVE = ("active", 0)


class Row(NamedTuple):
    """A run in SQL; of an ended one nothing but its status decides anything."""

    status: str
    claims: int = 0
    attempt: int = 0
    executor: str = ""
    waits: bool = False
    stop: bool = False


class State(NamedTuple):
    """Everything that decides what can happen next.

    Attributes:
        lines: each session's state and version in SQL.
        letters: what clients have committed and not yet told Redis.
        bells: doorbells in flight; `repeat` delivers one without using it up.
        doing: for each process where it stands in its move.
        left: for each of CHANCES how often it may still strike; last, how often all together may.
    """

    redis: int
    rows: tuple[Row | None, ...]
    lines: tuple[tuple[str, int], ...]
    letters: frozenset[tuple[Any, ...]]
    bells: frozenset[tuple[int, int]]
    doing: tuple[tuple[Any, ...], ...]
    left: tuple[int, ...]


class Step(NamedTuple):
    """One move: a `chance` is a fault or a user's choice, so nobody may count on it."""

    label: str
    state: State
    chance: bool = False
    broken: str = ""


def claim_guards(
    rows: tuple[Row | None, ...], peers: list[int], slots: int, run: int, claim: int
) -> dict[str, bool]:
    """Return the conditions of `Runs.claim`, each by its name, and whether it holds.

    Args:
        peers: all runs of the session by position.
    """
    row = rows[run]
    assert row is not None
    return {
        "claim.pending": row.status == PENDING,
        "claim.number": row.claims == claim - 1,
        "claim.due": not row.waits,
        "claim.order": sum(is_open(rows[peer]) for peer in peers if peer < run) < slots,
    }


def is_open(row: Row | None) -> bool:
    """Return whether a run was submitted and has not ended."""
    return row is not None and row.status != DONE


def put(rows: tuple[Row | None, ...], run: int, row: Row) -> tuple[Row | None, ...]:
    """Return the rows with one changed."""
    return (*rows[:run], row, *rows[run + 1 :])


def spend(state: State, chance: str) -> State | None:
    """Return the state in which a chance has struck once more; None when it may not."""
    number = CHANCES.index(chance)
    if not state.left[number] or not state.left[-1]:
        return None
    left = list(state.left)
    left[number] -= 1
    left[-1] -= 1
    return state._replace(left=tuple(left))
