"""Growth: the same work in an empty system, among many sessions, and behind a long log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from sqlalchemy import Table, create_engine, text

from asm_celery import SessionServer
from asm_celery.store.tables import events, session_counters, sessions
from benchmarks.figures import Figures, Size, standing_still, timed
from benchmarks.stage import Installation, Stage

FEW = 10
_COPY = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :rows) "
    "INSERT INTO {table} ({columns}) SELECT {values} FROM {table} CROSS JOIN numbers WHERE session_id = :model"
)


def growth(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure submit and dispatch on databases of several sizes in turns, each with a worker of its own."""
    old_sessions = max(1, size.old_events // 1000)
    with ExitStack() as stack:
        grounds = {
            name: _Ground(stack.enter_context(stage.installation()), count, old)
            for name, count, old in (
                ("few sessions", FEW, 0),
                ("more sessions", size.grown // 20, 0),
                ("many sessions", size.grown, 0),
                ("old events", old_sessions + 1, size.old_events // old_sessions),
            )
        }
        for ground in grounds.values():
            ground.work(size.submits // 2)
        while True:
            found: Figures = {}
            took = {name: ground.work(size.submits // 2) for name, ground in grounds.items()}
            least_submit_s, least_drain_s = took["few sessions"]
            for name, (submit_s, drain_s) in took.items():
                found[f"growth, {name}: submits, /s"] = size.submits // 2 / submit_s
                found[f"growth, {name}: dispatch, /s"] = size.submits // 2 / drain_s
                if name != "few sessions":
                    found[f"growth, {name}: submit, times of few"] = submit_s / least_submit_s
                    found[f"growth, {name}: dispatch, times of few"] = drain_s / least_drain_s
            yield found


class _Ground:
    """An installation with so many sessions, each with so many old events."""

    def __init__(self, here: Installation, count: int, old_events: int) -> None:
        self._here = here
        self._worker = here.worker()
        model = here.asm.start_session("noop", max_queued_runs=10_000)
        _multiply(here.config.database_url, model.session_id, count - 1, old_events)
        self._servers: list[SessionServer] = [model]
        # spread over all, however many
        for number in range(1, count, max(1, count // 200)):
            self._servers.append(here.asm.attach(f"grown-{number}"))

    def work(self, runs: int) -> tuple[float, float]:
        """Submit so many runs to a worker that stands still, then let it go; return how long each takes."""
        servers = self._servers
        with standing_still(self._worker, self._here.config.database_url):
            submit_s = timed(lambda: [servers[n % len(servers)].submit_run("g") for n in range(runs)])
        stamps = self._here.stamps.take(runs)
        return submit_s, stamps[-1].left - stamps[0].entered


def _multiply(database_url: str, model: str, count: int, old_events: int) -> None:
    """Copy a session, its counter and its first event so often, and `old_events` for each copy."""
    # SQLite has no procedure for it, so both databases copy by one statement each
    number = "CAST(n AS TEXT)"
    own = {
        "session_id": f"'grown-' || {number}",
        "event_id": f"'evt_grown' || {number}",
        "last_sequence": f"{1 + old_events}",
    }
    old = {
        "session_id": f"'grown-' || CAST(1 + (n - 1) / {old_events or 1} AS TEXT)",
        "sequence": f"2 + (n - 1) % {old_events or 1}",
        "event_id": f"'evt_old' || {number}",
        "type": "'note'",
        "data": f"""'{{"text"\\:"{"x" * 100}"}}'""",
    }
    copies: list[tuple[Table, dict[str, str], int]] = [
        *((table, own, count) for table in (sessions, session_counters, events)),
        *([(events, old, count * old_events)] if old_events else []),
    ]
    engine = create_engine(database_url)
    with engine.begin() as connection:
        for table, values, rows in copies:
            first = " AND sequence = 1" if table is events else ""
            statement = _COPY.format(
                table=table.name,
                columns=", ".join(column.name for column in table.columns),
                values=", ".join(values.get(column.name, column.name) for column in table.columns),
            )
            connection.execute(text(statement + first), {"rows": rows, "model": model})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
