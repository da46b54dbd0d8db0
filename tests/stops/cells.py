"""The table: which agent is stopped how, in which pool, on which database.  Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AGENTS = (
    "polite_async",
    "polite_async_generator",
    "polite_sync",
    "polite_generator",
    "spin",
    "socket_read",
    "swallow_exception",
    "swallow_unheard",
    "swallow_heard",
    "hash_in_c",
    "shell",
    "regex_in_c",
    "sum_in_c",
)
STOPS = ("cancel", "interrupt", "run_timeout", "revoke", "terminate")
POOLS = ("prefork", "threads")
DATABASES = ("sqlite", "postgresql")
FACTORS: Mapping[str, Sequence[str]] = {
    "agent": AGENTS,
    "stop": STOPS,
    "pool": POOLS,
    "database": DATABASES,
}
# Nothing but the end of its process ends such a body: with threads it takes the neighbours along.
HOLD_THE_GIL = frozenset({"regex_in_c", "sum_in_c"})
STATUS = {
    "cancel": "cancelled",
    "interrupt": "interrupted",
    "run_timeout": "timeout",
    "revoke": "cancelled",
    "terminate": "cancelled",
}
REASON = {"run_timeout": "run_timeout", "revoke": "revoked", "terminate": "revoked"}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """One cell of the table."""

    pool: str
    database: str
    agent: str
    stop: str

    def __str__(self) -> str:
        return f"{self.agent}-{self.stop}-{self.pool}-{self.database}"

    @property
    def takes_neighbours_along(self) -> bool:
        """True where the worker itself must end."""
        return self.pool == "threads" and self.agent in HOLD_THE_GIL


def cells(*, full: bool) -> list[Cell]:
    """Return all cells, or so many that each pair of two values of different factors is in one.

    In an order that lets the cells of one worker follow each other, those that end it last.
    """
    chosen = every(FACTORS) if full else pairwise(FACTORS)
    found = [Cell(**values) for values in chosen]
    return sorted(
        found,
        key=lambda cell: (cell.pool, cell.database, cell.takes_neighbours_along, AGENTS.index(cell.agent)),
    )


def every(factors: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return all combinations of one value a factor."""
    return [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]


def pairwise(factors: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return combinations so that every two values of different factors meet; the same each time.

    Greedy: the combination that brings most new pairs comes next; of equals the one whose pairs were had
    least often, so that all values get their share; of those the first.
    """
    candidates = [(one, _pairs(one)) for one in every(factors)]
    met: Counter[tuple[tuple[str, str], ...]] = Counter()
    missing = {pair for _, pairs in candidates for pair in pairs}
    chosen = []
    while missing:
        best, pairs = max(
            candidates, key=lambda one: (len(missing & one[1]), -sum(met[pair] for pair in one[1]))
        )
        chosen.append(best)
        met.update(pairs)
        missing -= pairs
    return chosen


def _pairs(values: Mapping[str, str]) -> set[tuple[tuple[str, str], ...]]:
    return set(itertools.combinations(values.items(), 2))
