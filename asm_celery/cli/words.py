"""Facts as people read them: left-aligned tables, times relative to now, one line an event."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asm_celery.model import Event, Run

# Without a terminal nothing is cut off: a line is as long as it is.
_ENDLESS = 10_000


def console(*, stderr: bool = False) -> Console:
    """Return a console; it obeys NO_COLOR, and does not colour what is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else _ENDLESS)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table to stdout; a cell is text and never markup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(plain(str(cell))) for cell in row))
    console().print(table)


def ago(then: datetime | None) -> str:
    """Return how long ago something was: ``12s ago``."""
    return "-" if then is None else f"{span((datetime.now(UTC) - then).total_seconds())} ago"


def between(begin: datetime | None, end: datetime | None) -> str:
    """Return the time from `begin` to `end`, or to now while that is open; ``-`` before `begin`."""
    return "-" if begin is None else span(((end or datetime.now(UTC)) - begin).total_seconds())


def span(seconds: float) -> str:
    """Return seconds as people say them: ``0.3s``, ``45s``, ``12m``, ``5h``, ``3d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def event_line(event: Event) -> str:
    """Return an event as one line: sequence, time, run, type, and what it says."""
    said = event.data.get("content")
    if not isinstance(said, str) or len(event.data) > 1:
        said = json.dumps(event.data, ensure_ascii=False) if event.data else ""
    run = event.run_id[-6:] if event.run_id else "-"
    return (
        f"{event.sequence:>5}  {event.timestamp:%H:%M:%S}  {run:<6}  {event.type:<20}  {plain(said)}".rstrip()
    )


def run_row(run: Run) -> list[str]:
    """Return a run's cells: id, agent, position, status, waited, ran."""
    notes = {f"{run.stop_requested} asked": run.stop_requested, "paused": run.paused_at}
    note = next((note for note, holds in notes.items() if holds and not run.is_terminal), None)
    status = f"{run.status} ({note})" if note else run.status
    waited = between(run.created_at, run.started_at or run.ended_at)
    return [run.run_id, run.agent, str(run.position), status, waited, between(run.started_at, run.ended_at)]


RUN_HEADS = ("run", "agent", "position", "status", "waited", "ran")


def plain(text: str) -> str:
    """Return text on one line without control characters: agents' output must not steer a terminal."""
    return "".join(sign if sign.isprintable() else _visible(sign) for sign in text.rstrip("\n"))


def _visible(sign: str) -> str:
    return {"\n": "⏎", "\t": " "}.get(sign, "�")
