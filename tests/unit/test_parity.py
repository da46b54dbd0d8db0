"""The parity table is complete and true: every row once, every named test exists."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.documents import DOCS
from tests.named_tests import missing_of, named_in

# The rows of the original's behaviour that are to be kept or bettered, by section.
REQUIRED = {
    "SS": "1-9 11-17 20-35 40-50 60-72 80-91 100-105 110-112 120-127 130-153 160-167 170-177",
    "RQ": "1-7",
    "CL": "1-18",
    "CI": "1-3",
    "CO": "1-27",
    "ST": "1-47 49",
    "EV": "1-10",
    "RN": "1-12",
    "SE": "1-6",
    "ER": "1-8",
    "CF": "1-4",
}
PAGE = (DOCS / "reference" / "parity.md").read_text()
TABLE = PAGE.split("\n## Left out")[0]


def required() -> Iterator[str]:
    """Yield the ids of the rows that must be there."""
    for section, ranges in REQUIRED.items():
        for one in ranges.split():
            first, _, last = one.partition("-")
            yield from (f"{section}-{number}" for number in range(int(first), int(last or first) + 1))


def rows() -> list[tuple[str, str, str]]:
    """Return (id, what happens here, what shows it) of every row."""
    return re.findall(r"^\| ([A-Z]{2}-\d+) \| (.*?) \| (.*?) ?\|$", TABLE, re.MULTILINE)


def test_every_row_is_there_once() -> None:
    """None is forgotten, none is told twice, none is invented."""
    assert sorted(required()) == sorted(name for name, _, _ in rows())


def test_every_test_that_is_named_exists() -> None:
    """A row whose test was renamed or removed is not shown any more."""
    assert [] == missing_of(PAGE)


def test_a_row_names_its_test_or_says_later() -> None:
    """Nothing is claimed without either."""
    silent = [name for name, here, shown in rows() if not named_in(shown) and "later" not in here]

    assert [] == silent


def test_a_departure_is_argued() -> None:
    """Each row that differs where the original is not wrong is named in the decision about departures."""
    decision = (DOCS / "adr" / "0008-departures-from-the-original.md").read_text()

    departures = {name for name, here, _ in rows() if here.startswith("differs")}

    argued = set(re.findall(r"\b[A-Z]{2}-\d+\b", decision))
    assert departures <= argued
