"""What one search explores: sessions, limits, processes, and how often each chance may strike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase

# Chances nobody may count on: faults, and what users choose to do.
CHANCES = (
    "crash",
    "lose",
    "repeat",
    "suspect",
    "wipe",
    "lull",
    "withdraw",
    "fail",
    "pause",
    "cancel",
    "drain",
)


def unchanged(verb: str, text: str) -> str:
    """Leave a script as it is."""
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A configuration.

    Attributes:
        sessions: for each session its slots and how many runs are submitted to it.
        limit: of runs, for all sessions together; None: none.
        max_sessions: with work in flight; None: none.
        executors, repairers: how many processes; every executor announces `room` runs.
        late: how many commits of clients may at one time be known to SQL and not yet to Redis.
        chances: how often each of CHANCES may strike; all others never do.
        together: how often all of them together may.
        without: names of guards and repairs in the model of SQL and of the moves that are left out.
        edit: makes a mutant of the scripts.
    """

    sessions: tuple[tuple[int, int], ...]
    limit: int | None = None
    max_sessions: int | None = None
    executors: int = 2
    repairers: int = 1
    room: int = 1
    max_attempts: int = 1
    late: int = 99
    chances: Mapping[str, int] = field(default_factory=dict)
    together: int = 99
    without: frozenset[str] = frozenset()
    edit: Callable[[str, str], str] = unchanged

    def runs(self) -> list[tuple[int, int]]:
        """Return session and position of every run; its index is its number."""
        return [
            (session, position)
            for session, (_, count) in enumerate(self.sessions)
            for position in range(1, count + 1)
        ]

    def names(self) -> list[str]:
        """Return the run ids: a1, a2, b1 ..."""
        return [f"{ascii_lowercase[session]}{position}" for session, position in self.runs()]

    def processes(self) -> list[str]:
        """Return the executors' names, then the repairers'."""
        return [f"e{n}" for n in range(self.executors)] + [f"o{n}" for n in range(self.repairers)]
