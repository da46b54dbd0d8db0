"""The demo as it is seen: a live table on a terminal, plain lines elsewhere, objects with ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asm_celery.cli.call import Call
from asm_celery.cli.words import between, console, plain, print_table
from asm_celery.model import Event
from asm_celery.states import EventType, RunStatus
from workers.demo_play import Entry, Line

_COLOURS: Final[Mapping[str, str]] = {
    RunStatus.COMPLETED: "green",
    RunStatus.FAILED: "red",
    RunStatus.CANCELLED: "yellow",
    RunStatus.INTERRUPTED: "yellow",
    RunStatus.TIMEOUT: "red",
}
_HEADS: Final = ("session", "agent", "run", "waited", "ran", "status")
# A text without line ends is shown in pieces of this length.
_PIECE: Final = 80


class View(Protocol):
    """Who watches the demo."""

    def note(self, text: str) -> None:
        """Tell what the demo does."""

    def event(self, line: Line, title: str, event: Event) -> None:
        """Tell what happened in a session."""

    def refresh(self, lines: list[Line]) -> None:
        """Show how all sessions are now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(call: Call) -> View:
    """Return the view for this invocation and its terminal."""
    if call.is_json:
        return _Objects(call)
    screen = console()
    return _Table(screen) if screen.is_terminal and not screen.is_dumb_terminal else _Lines(call)


def closing_table(call: Call, entries: list[Entry]) -> None:
    """Print how every run ended, as SQL has it."""
    for entry in entries:
        call.answer("run", {**entry.run.to_map(), "title": entry.title, "expected": entry.expected})
    if call.is_json:
        return
    rows = [
        [
            entry.session,
            entry.run.agent,
            entry.title,
            between(entry.run.created_at, entry.run.started_at or entry.run.ended_at),
            between(entry.run.started_at, entry.run.ended_at),
            entry.run.status,
        ]
        for entry in entries
    ]
    print_table(_HEADS, rows)


class _Silent:
    """What a view does unless it says otherwise: nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """See `View`."""

    def refresh(self, lines: list[Line]) -> None:
        """See `View`."""


class _Objects(_Silent):
    """Each event as one object."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def event(self, line: Line, title: str, event: Event) -> None:
        """See `View`."""
        self._call.answer("event", event.to_map())


class _Lines(_Silent):
    """Each piece of output, and each change, as one line."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._begun: dict[str, str] = {}

    def note(self, text: str) -> None:
        """See `View`."""
        self._call.text(f"demo   > {text}")

    def event(self, line: Line, title: str, event: Event) -> None:
        """See `View`."""
        name = line.part.name
        if event.type == EventType.MESSAGE_STREAMED:
            *whole, begun = (self._begun.get(name, "") + str(event.data.get("content", ""))).split("\n")
            if len(begun) >= _PIECE:
                whole, begun = [*whole, begun], ""
            self._begun[name] = begun
            for text in filter(str.strip, whole):
                self._call.text(f"{name:<6} | {plain(text)}")
        elif said := _change(title, event):
            if rest := self._begun.pop(name, "").strip():
                self._call.text(f"{name:<6} | {plain(rest)}")
            self._call.text(f"{name:<6} > {said}")


class _Table(_Silent):
    """A table that lives at the foot of the terminal, changes above it."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._live = Live(console=screen, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """See `View`."""
        self._screen.print(Text(text, style="bold"))

    def event(self, line: Line, title: str, event: Event) -> None:
        """See `View`."""
        if said := _change(title, event):
            colour = _COLOURS.get(str(event.data.get("status")), "dim")
            self._screen.print(Text(f"{line.part.name:<6} {said}", style=colour))

    def refresh(self, lines: list[Line]) -> None:
        """See `View`."""
        table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
        for head, ratio in (("session", 1), ("running", 4), ("waiting", 1), ("ended", 1), ("last output", 6)):
            table.add_column(head, no_wrap=True, overflow="ellipsis", ratio=ratio)
        for line in lines:
            running = ", ".join(
                f"{line.titles[run_id]} {between(since, None)}" for run_id, since in line.running.items()
            )
            ended = f"{len(line.ended)} of {len(line.titles)}"
            cells = [line.part.name, running, str(len(line.waiting)), ended, plain(line.last)[-_PIECE:]]
            table.add_row(*map(Text, cells))
        self._live.update(table, refresh=True)


def _change(title: str, event: Event) -> str:
    """Return a run's change of status in words; empty for what is no change or goes without saying."""
    if event.type == EventType.RUN_STARTED:
        return f"{title}: started"
    if not event.is_terminal:
        return ""
    error = event.data.get("error") or {}
    said = error.get("message")
    return f"{title}: {event.data.get('status')}" + (f" ({said})" if said else "")
