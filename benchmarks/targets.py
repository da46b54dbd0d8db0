"""What is aimed at: a bound for some of the figures, by their names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for a median; the one for PostgreSQL where it differs.

    Attributes:
        least: the bound is a least value and not a most one.
    """

    sqlite: float | None
    postgresql: float | None
    least: bool = False

    @property
    def word(self) -> str:
        """How the bound is said."""
        return "at least" if self.least else "at most"

    def bound(self, database: str) -> float | None:
        """Return the bound on this database; None for no bound."""
        return self.postgresql if database == "postgresql" else self.sqlite


def _at_least(sqlite: float | None, postgresql: float | None = None) -> Target:
    return Target(sqlite, sqlite if postgresql is None else postgresql, least=True)


def _at_most(bound: float) -> Target:
    return Target(bound, bound)


# with the sizes of `figures.FULL`
TARGETS: dict[str, Target] = {
    "idle worker: ours, % of a core": _at_most(1.0),
    "idle worker: ratio of memory": _at_most(1.15),
    "submit, 1 client: ratio": _at_least(1.0, 0.7),
    "end to end: ratio": _at_least(1.0, 0.8),
    "one busy session: ratio to lock and retry": _at_least(3.0),
    "gap: p50 ratio": _at_most(2.0),
    "gap: p99 of ours in its p50": _at_most(10.0),
    "pick up: p50 ratio": _at_most(1.15),
    "await: p50 ratio": _at_most(1.5),
    "events to 1 subscriber, /s": Target(None, 3000.0, least=True),
    "events: ratio to such rows": Target(None, 0.5, least=True),
    "events, 200/s: p50 ratio": _at_most(2.0),
    "events, 200/s: delivery to 1 p99, ms": _at_most(20.0),
    "events: writer's CPU with the crowd, ratio to 1": _at_most(1.1),
    "growth, many sessions: submit, times of few": _at_most(1.15),
    "growth, many sessions: dispatch, times of few": _at_most(1.15),
    "growth, old events: submit, times of few": _at_most(1.15),
    "growth, old events: dispatch, times of few": _at_most(1.15),
    "runs that wait for I/O: ratio to one of them": _at_most(2.0),
    "runs that wait for I/O: worker, MiB": _at_most(300.0),
}
