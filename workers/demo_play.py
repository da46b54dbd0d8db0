"""The demo as it is played: submit, follow, stop at the right moment, and compare with the log at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from asm_celery import AgentSessions
from asm_celery.events.subscription import Subscription
from asm_celery.model import Event, Run
from asm_celery.server import SessionServer
from asm_celery.states import EventType, StopKind
from workers.demo_story import Part, Scene


class Audience(Protocol):
    """Who watches."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""

    def event(self, line: Line, title: str, event: Event) -> None:
        """A session's event came."""


@dataclass(slots=True, kw_only=True)
class Line:
    """A session as it is seen live: from its events only.

    Attributes:
        titles: what each of its runs does, by run id, in order.
        running: since when.
        seen: how many events of the first run came.
        last: the newest line of output.
    """

    part: Part
    server: SessionServer
    events: Subscription
    titles: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    running: dict[str, datetime] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    stops: list[tuple[str, Scene]] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    seen: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run as the log has it at the end."""

    session: str
    title: str
    run: Run
    expected: str


class Play:
    """The sessions of a story, in one thread.

    Attributes:
        lines: one a session.
    """

    def __init__(self, asm: AgentSessions, story: list[Part]) -> None:
        self._asm = asm
        self._story = story
        self.lines: list[Line] = []

    def begin(self, audience: Audience) -> None:
        """Start all sessions and submit all runs; they begin at once."""
        for part in self._story:
            server = self._asm.start_session(part.agent, session_id=part.name, max_concurrent_runs=part.slots)
            self.lines.append(Line(part=part, server=server, events=server.subscribe()))
        for line in self.lines:
            for scene in line.part.scenes:
                run_id = line.server.submit_run(scene.input)
                line.titles[run_id] = scene.title
                if scene.stop is not None:
                    line.stops.append((run_id, scene))
        runs = sum(len(line.titles) for line in self.lines)
        audience.note(f"{runs} runs submitted to {len(self.lines)} sessions")

    def step(self, audience: Audience) -> None:
        """Take what has come and do what is due."""
        for line in self.lines:
            while (event := line.events.get(0)) is not None:
                _take(line, event)
                audience.event(line, line.titles.get(event.run_id or "", ""), event)
            for due in [stop for stop in line.stops if line.seen >= stop[1].stop_at]:
                line.stops.remove(due)
                self._stop(line, *due, audience)

    def close(self) -> None:
        """Stop following."""
        for line in self.lines:
            line.events.close()

    @property
    def has_ended(self) -> bool:
        """True when the end of every run was seen."""
        return all(len(line.ended) == len(line.part.scenes) for line in self.lines)

    def entries(self) -> list[Entry]:
        """Return all runs as SQL has them."""
        return [
            Entry(session=line.part.name, title=scene.title, run=run, expected=scene.ends)
            for line in self.lines
            for run, scene in zip(line.server.list_runs(), line.part.scenes, strict=True)
        ]

    def surprises(self) -> list[str]:
        """Return what is not as the story says; empty when all is well."""
        found = [
            f"{entry.session}, {entry.title}: {entry.run.status} and not {entry.expected}"
            for entry in self.entries()
            if entry.run.status != entry.expected
        ]
        for line in self.lines:
            stored = [event.sequence for event in _stored(line.server)]
            if stored != list(range(1, len(stored) + 1)):
                found.append(f"{line.part.name}: the log has holes")
            if line.sequences != stored:
                found.append(
                    f"{line.part.name}: {len(line.sequences)} events were seen, {len(stored)} are in the log"
                )
        return found

    def summary(self) -> str:
        """Return what the log holds, in a sentence."""
        events = sum(len(line.sequences) for line in self.lines)
        return (
            f"read back from SQL: {events} events of {len(self.lines)} sessions, numbered without a gap, each seen "
            f"live once ({self._asm.config.database_url})"
        )

    def _stop(self, line: Line, run_id: str, scene: Scene, audience: Audience) -> None:
        title = f"{line.part.name}, {scene.title!r}"
        if scene.stop is StopKind.CANCEL:
            audience.note(f"cancelling {title}, which waits")
            line.server.cancel_run(run_id)
        else:
            audience.note(f"interrupting {title}, which runs")
            line.server.interrupt_run(run_id)


def _take(line: Line, event: Event) -> None:
    line.sequences.append(event.sequence)
    run_id = event.run_id
    if run_id is None:
        return
    if run_id == next(iter(line.titles)):
        line.seen += 1
    if event.type == EventType.RUN_QUEUED:
        line.waiting.append(run_id)
    elif event.type == EventType.RUN_STARTED:
        line.waiting.remove(run_id)
        line.running[run_id] = event.timestamp
    elif event.is_terminal:
        # a run that was withdrawn never ran
        if line.running.pop(run_id, None) is None:
            line.waiting.remove(run_id)
        line.ended.append(run_id)
    elif event.type == EventType.MESSAGE_STREAMED:
        # a stream comes word by word: what is shown is the line so far
        begun = line.last if not line.last.endswith("\n") else ""
        line.last = "".join((begun + str(event.data.get("content", ""))).splitlines(keepends=True)[-1:])


def _stored(server: SessionServer) -> Iterator[Event]:
    after = 0
    while page := server.get_events(after, limit=1000):
        yield from page
        after = page[-1].sequence
