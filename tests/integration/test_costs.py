"""The costs that docs/explanation/architecture.md names, counted from the running code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from redis.connection import AbstractConnection
from sqlalchemy import Connection, event

from asm_celery.config import Config
from asm_celery.model import Event, Session
from asm_celery.moves.outcome import Outcome
from asm_celery.states import RunStatus
from asm_celery.store import database
from asm_celery.store.engine import begin_immediate
from tests.documents import DOCS
from tests.world import World


@dataclass
class Cost:
    """What one move used."""

    transactions: int = 0
    statements: int = 0
    trips: int = 0


class Meter:
    """Counts what a world's stores are asked."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cost = Cost()
        event.listen(world.runtime.store._engine, "before_cursor_execute", self._on_statement)
        send = AbstractConnection.send_packed_command

        def counted(connection: Any, command: Any, check_health: bool = True) -> Any:
            self.cost.trips += 1
            return send(connection, command, check_health)

        def begun(pen: Connection, wait_s: float) -> None:
            self.cost.transactions += 1
            begin_immediate(pen, wait_s)

        monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
        monkeypatch.setattr(database, "begin_immediate", begun)

    @contextmanager
    def reading(self) -> Iterator[Cost]:
        """Count from here to the end of the block."""
        self.cost = Cost()
        yield self.cost

    def _on_statement(self, *_: Any) -> None:
        self.cost.statements += 1


def told() -> dict[str, list[str]]:
    """Return the table: move -> its numbers as text."""
    text = (DOCS / "explanation" / "architecture.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    return {move: numbers for move, *numbers in rows}


def test_a_move_costs_what_the_document_says(sqlite_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions, statements and trips of every move of the table, with warm connections and scripts."""
    # between two looks of the repair loop no comparison with SQL must fall due
    world = World(sqlite_config.model_copy(update={"ring_s": 60.0}))
    meter = Meter(world, monkeypatch)
    counted: dict[str, list[str]] = {}

    def count(move: str, act: Callable[[], Any]) -> Any:
        with meter.reading() as cost:
            answer = act()
        counted[move] = [str(number) for number in (cost.transactions, cost.statements, cost.trips)]
        return answer

    # the second round finds connections open and scripts loaded
    for _ in range(2):
        _walk(world, count)

    assert told() == counted
    world.close()


def _walk(world: World, count: Callable[[str, Callable[[], Any]], Any]) -> None:
    session: Session = world.session()
    server, moves = world.server(session), world.runtime.coordinator
    recovery = world.runtime.recovery
    count("announcement of an executor", world.announce)
    run_id = count("submit", lambda: server.submit_run({"a": 1}))
    waiting = server.submit_run(2)
    claim = count("start an attempt", world.start)
    notes = [Event.new("note", session.session_id, run_id=run_id) for _ in range(3)]
    position = count("append a batch of events", lambda: moves.append(claim, notes, 0))
    count("beat of an executor, all its runs together", lambda: world.beat("executor", {run_id: 1}))
    recovery.repair()
    count("look of the repair loop, nothing wrong", recovery.repair)
    count("status", server.status)
    count("cancel a waiting run", lambda: server.cancel_run(waiting))
    count("ask a running run to stop", lambda: server.cancel_run(run_id))
    moves.finish(claim, Outcome(status=RunStatus.CANCELLED), [], position)
    server.submit_run(3)
    last = world.start()
    count("finish a run", lambda: moves.finish(last, Outcome(status=RunStatus.COMPLETED), [], 0))
    count("pause or resume a session", server.pause)
