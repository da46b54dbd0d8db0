"""A chaos report in short, for the page of guarantees."""

from __future__ import annotations

from tests.faults import report, summary

REPORT = """# Chaos on PostgreSQL, seed 1

- Commit abc
- 2 faults of 1 kinds in 0.1 minutes

## Promises

| what | found |
|---|---|
| stale writes | 3 |
| a new checker | 0 |

## Faults

- no fact of the run

| component | kind | what | times | alone: longest recovery | in storms | bound | noted last |
|---|---|---|---|---|---|---|---|
| redis | flushall | FLUSHALL | 2 | - | 9.5 s | 10 s |  |
| worker | deploy | SIGTERM | 4 | 10.5 s | 9.5 s | 5 s | a note |
"""


def test_a_report_in_short_says_what_was_found_and_the_longest_recoveries() -> None:
    """Times are compared as numbers, and a fault that was never alone has its storms."""
    found = summary.of(REPORT)

    assert ["- Commit abc", "- 2 faults of 1 kinds in 0.1 minutes"] == found.head
    assert [("stale writes", "P8", "3"), ("a new checker", "", "0")] == found.promises
    assert [
        ("redis", "flushall", "2", "9.5 s", "10 s"),
        ("worker", "deploy", "4", "10.5 s", "5 s"),
    ] == found.faults


def test_whatever_a_run_looks_for_would_break_a_named_promise() -> None:
    """A row that is added to the report names its promise on the page, too."""
    text = "## Promises\n\n| what | found |\n|---|---|\n" + "".join(
        f"| {what} | 0 |\n" for what in report.PROMISES
    )
    faults = REPORT.partition("## Faults")[2]

    found = summary.of(f"{text}\n## Faults{faults}")

    assert list(report.PROMISES) == [what for what, _, _ in found.promises]
    assert [] == [what for what, promises, _ in found.promises if not promises]
