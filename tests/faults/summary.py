"""The figures of a chaos run, read from its report for a page that says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# which promises what a run looked for would have broken
_BROKEN: Final = {
    "accepted runs lost": "P1",
    "runs with two ends, or none": "P1, P9",
    "overlaps in a session": "P3, P4",
    "starts out of order, submits out of order": "P3",
    "excess over the global limit": "P5",
    "user code entered too often": "P6, P7",
    "false deaths": "P15",
    "stale writes": "P8",
    "events lost or doubled": "P11",
    "gaps in a log": "P10",
    "transcripts that differ from the log": "P12, P13",
    "keys with two runs": "P2",
    "stops that did not hold": "P16, P17",
    "awaits that differ": "P20",
    "recoveries beyond three times their bound": "P14, P16, P18",
    "leases, limiter entries and processes left": "P16, P18",
    "complaints of asm doctor": "P14",
    "what clients should not see": "P19, P21",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in short.

    Attributes:
        head: lines of Markdown: commit, clocks, how much was done.
        promises: what was looked for, which promises it breaks, how often it was found.
        faults: component, kind, times, longest recovery alone or in a storm, and its bound.
    """

    head: Sequence[str]
    promises: Sequence[tuple[str, ...]]
    faults: Sequence[tuple[str, ...]]


def of(text: str) -> Summary:
    """Read a report of `tests.faults.report`."""
    timed = ("component", "kind", "times", "alone: longest recovery", "in storms", "bound")
    return Summary(
        head=[line for line in text.partition("## ")[0].splitlines() if line.startswith("- ")],
        promises=[
            (what, _BROKEN.get(what, ""), found) for what, found in _rows(text, "Promises", ("what", "found"))
        ],
        faults=[
            (part, kind, times, max(alone, storm, key=_seconds), bound)
            for part, kind, times, alone, storm, bound in _rows(text, "Faults", timed)
        ],
    )


def _rows(text: str, section: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    body = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    places = [lines[0].index(column) for column in columns]
    return [tuple(line[place] for place in places) for line in lines[1:]]


def _seconds(time: str) -> float:
    return 0.0 if time == "-" else float(time.removesuffix(" s"))
