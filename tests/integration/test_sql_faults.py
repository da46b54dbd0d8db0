"""What SQL does to us: lost answers, conflicts, cut connections, no room; nothing is lost, nothing doubled."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import event as listening

from asm_celery.config import Config
from asm_celery.errors import StorageBusy, StorageConnectionFailed, StorageError
from asm_celery.events.cursor import Place, begin_at
from asm_celery.model import Event, Session
from asm_celery.moves.coordinator import Coordinator
from asm_celery.moves.outcome import Outcome
from asm_celery.states import RunStatus
from asm_celery.store.database import Store
from asm_celery.store.faults import CommitUnknown, retried
from tests.following import LossyBus, place
from tests.integration.station import station
from tests.sql_proxy import SqlProxy, sql_proxy
from tests.waiting import wait_until
from tests.world import World

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
WRITERS = 6
TURNS = 20


@contextmanager
def plain(config: Config) -> Iterator[psycopg.Connection]:
    """A connection of somebody else's, past all of our own code."""
    with psycopg.connect(config.database_url.replace("+psycopg", "", 1), autocommit=True) as made:
        yield made


@contextmanager
def told_to_sqlite(store: Store, pragma: str) -> Iterator[None]:
    """Give the store's connections a PRAGMA for a while."""

    def tell(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA {pragma}")

    # in this order: another thread may connect in between
    listening.listen(store._engine, "connect", tell)
    store.close()
    yield
    listening.remove(store._engine, "connect", tell)
    store.close()


@pytest.fixture
def proxy(config: Config) -> Iterator[SqlProxy]:
    """A proxy before the test's PostgreSQL."""
    with sql_proxy(config.database_url) as made:
        yield made


def everything(world: World, before: Callable[[], None]) -> Counter[str]:
    """Make every move that writes to a log, calling `before` ahead of each; return the types of the events."""

    def doing(act: Callable[..., Any], *args: Any, **values: Any) -> Any:
        before()
        return act(*args, **values)

    moves = world.runtime.coordinator
    session: Session = doing(world.session, max_concurrent_runs=2)
    server = world.server(session)
    first = doing(server.submit_run, 1)
    claim = doing(world.start)
    notes = [Event.new("note", session.session_id, run_id=first) for _ in range(3)]
    position = doing(moves.append, claim, notes, 0)
    doing(
        moves.finish,
        claim,
        Outcome(status=RunStatus.COMPLETED, output=7),
        [notes[0].new("note", session.session_id, run_id=first)],
        position,
    )
    second = doing(server.submit_run, 2, max_attempts=2)
    doing(
        moves.finish,
        doing(world.start),
        Outcome(status=RunStatus.FAILED, error={"code": "x", "message": "x"}),
        [],
        0,
    )
    doing(server.cancel_run, second)
    doing(server.submit_run, 3)
    doing(server.interrupt_run, doing(world.start).run.run_id)
    world.runtime.coordinator.lose(server.status().in_flight_runs[0], 1, "executor", message="it was lost")
    doing(server.append_events, [Event.new("remark", session.session_id)])
    for verb in (server.pause, server.resume, server.complete):
        doing(verb)
    return Counter(world.types(session))


@on_postgresql
@pytest.mark.parametrize("mode", ["lose_answer", "lose_commit", "cut"])
def test_every_move_is_written_exactly_once_through_a_lost_commit(
    config: Config, proxy: SqlProxy, mode: str
) -> None:
    """Whether the COMMIT or only its answer was lost, the caller gets its answer and the log has no event twice."""
    sound = World(config)
    expected = everything(sound, lambda: None)
    sound.close()
    world = World(config.model_copy(update={"database_url": proxy.url}))
    armed = 0

    def arm() -> None:
        nonlocal armed
        assert not proxy.mode, "the move before did not commit"
        proxy.mode, armed = mode, armed + 1

    seen = everything(world, arm)
    world.close()

    assert expected == seen
    assert armed == proxy.lost > 10


@on_postgresql
def test_a_commit_that_the_server_is_still_busy_with_is_waited_for(config: Config, proxy: SqlProxy) -> None:
    """A look that only reads would take it for lost, and write everything again."""
    with plain(config) as other:
        other.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'"
        )
        other.execute(
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
            " WHEN (NEW.type = 'slow') EXECUTE FUNCTION dawdle()"
        )
    with place(config.model_copy(update={"database_url": proxy.url})) as here:
        session_id = here.session()

        proxy.mode = "cut"
        last = here.say(session_id, type="slow")

        page = here.log.page(session_id, after=0, limit=10)
    assert (2, ["session_created", "slow"]) == (last, [event.type for event in page.events])


@on_postgresql
def test_a_deadlock_is_tried_again_and_nobody_sees_it(config: Config) -> None:
    """Another program that locks in the wrong order costs a second, not an error (40P01)."""
    world = World(config)
    session = world.session()
    server = world.server(session)
    run_id = server.submit_run(1)
    with plain(config) as other, ThreadPoolExecutor(1) as threads:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("BEGIN")
        other.execute("SELECT 1 FROM session_counters WHERE session_id = %s FOR UPDATE", [session.session_id])
        stopping = threads.submit(server.cancel_run, run_id)
        with plain(config) as observer:
            wait_until(
                lambda: observer.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone(),
                description="the stop waits for the counter row",
            )
        other.execute("UPDATE runs SET metadata = metadata WHERE run_id = %s", [run_id])
        other.execute("COMMIT")

        assert "withdrawn" == stopping.result(timeout=30).state
    assert 1 == world.types(session).count("run_cancelled")
    world.close()


@on_postgresql
def test_serialization_failures_are_tried_again(config: Config) -> None:
    """On a database that is set to repeatable read, writers of one session meet, and all are served (40001)."""
    with plain(config) as other:
        name = other.info.dbname
        other.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO 'repeatable read'")  # type: ignore[arg-type]
    world = World(config)
    session = world.session(max_queued_runs=100)
    server = world.server(session)
    rolled_back = 0

    def count(context: Any) -> None:
        nonlocal rolled_back
        rolled_back += getattr(context.original_exception, "sqlstate", "") == "40001"

    listening.listen(world.runtime.store._engine, "handle_error", count)
    with ThreadPoolExecutor(4) as threads:
        accepted = list(threads.map(server.submit_run, range(40)))

    assert 40 == len({*accepted}) == server.status().queued_count
    assert rolled_back > 0
    world.close()


@on_postgresql
def test_a_client_frozen_with_a_lock_holds_a_session_for_seconds_only(config: Config) -> None:
    """The server ends a transaction that does nothing for 5 s; whoever waits for its lock gets through."""
    with place(config) as frozen, place(config) as here:
        session_id = here.session()
        holds, thaw = threading.Event(), threading.Event()

        def freeze() -> None:
            with frozen.log.transaction() as tx:
                tx.sessions.draw(session_id)
                holds.set()
                thaw.wait(60)
                tx.append(session_id, [Event.new("late", session_id)])

        with ThreadPoolExecutor(1) as threads:
            freezing = threads.submit(freeze)
            assert holds.wait(20)
            try:
                assert 2 == retried(here.say)(session_id)
            finally:
                thaw.set()
            with pytest.raises(StorageBusy):
                freezing.result(timeout=30)
        assert 3 == here.say(session_id)


@on_postgresql
def test_connections_ended_by_an_administrator_lose_and_double_nothing(config: Config) -> None:
    """Every submit that returned an id is stored once, every one that raised is not stored (57P01)."""
    world = World(config)
    session = world.session(max_queued_runs=10_000)
    server = world.server(session)
    accepted: list[str] = []
    refused: list[int] = []
    enough = threading.Event()

    def submit() -> None:
        while not enough.is_set():
            try:
                accepted.append(server.submit_run(None))
            except StorageConnectionFailed:
                refused.append(1)

    with plain(config) as other, ThreadPoolExecutor(3) as threads:
        submitting = [threads.submit(submit) for _ in range(3)]
        for round_ in range(10):
            wait_until(lambda goal=5 * round_: len(accepted) > goal, description="submits go on")  # type: ignore[misc]
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        enough.set()
        for one in submitting:
            one.result(timeout=30)

    stored = [run.run_id for run in server.list_runs(limit=1000)]
    assert sorted(accepted)[:1000] == sorted(stored)
    world.close()


def test_a_crowded_pool_is_a_typed_refusal_and_beats_go_on(config: Config) -> None:
    """Who finds no connection in time is told to try again; a beat has one of its own, lest it look like a death."""
    world = World(config.model_copy(update={"pool_size": 1, "connect_timeout_s": 0.3}))
    server = world.server(world.session())
    store = world.runtime.store

    with ExitStack() as crowd:
        for _ in range(2):
            crowd.enter_context(store.read())
        for call in (lambda: server.submit_run(1), server.status):
            with pytest.raises(StorageBusy, match="pool_size") as refused:
                call()
            assert refused.value.retryable
        world.runtime.recovery.beat("executor", {})
    server.submit_run(1)

    with store.read() as tx:
        assert {"executor": 1} == tx.executors.beats(["executor"])
    assert 1 == server.status().queued_count
    world.close()


def test_no_writer_of_a_sqlite_file_starves_beside_busy_ones(sqlite_config: Config) -> None:
    """Processes that write without a pause take turns; with the driver's own wait one got in once in 6 s."""
    with ExitStack() as stack:
        # a store each, as processes have: inside one store writers queue in order
        places = [stack.enter_context(place(sqlite_config)) for _ in range(WRITERS)]
        sessions = [here.session() for here in places]
        turns = [0] * WRITERS
        enough = threading.Event()

        def write(index: int) -> None:
            while not enough.is_set():
                places[index].say(sessions[index])
                turns[index] += 1

        with ThreadPoolExecutor(WRITERS) as threads:
            writing = [threads.submit(write, index) for index in range(WRITERS)]
            try:
                wait_until(
                    lambda: min(turns) >= TURNS, description=f"everyone wrote {TURNS} times", timeout=60
                )
            finally:
                enough.set()
            for one in writing:
                one.result(timeout=30)


def test_a_foreign_writer_that_stays_too_long_is_a_typed_refusal(
    sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a SQLite file is waited for, and then the caller is told to try again."""
    monkeypatch.setattr("asm_celery.store.database.WRITER_PATIENCE_S", 0.2)
    path = sqlite_config.database_url.removeprefix("sqlite:///")
    with place(sqlite_config) as here, closing(sqlite3.connect(path, isolation_level=None)) as other:
        session_id = here.session()
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StorageBusy, match="nothing was written") as refused:
            here.say(session_id)

        assert ("storage_busy", True) == (refused.value.code, refused.value.retryable)
        assert 1 == here.log.page(session_id, after=0, limit=9).head, "readers go on"
        other.execute("ROLLBACK")
        assert 2 == here.say(session_id)


def test_a_run_goes_on_when_a_full_disk_has_room_again(sqlite_config: Config) -> None:
    """A full disk is a typed error to callers, and a pause to runs: no event is lost, no file damaged."""
    path = sqlite_config.database_url.removeprefix("sqlite:///")
    begun, emitted = threading.Event(), 300

    def chatty(ctx: Any, given: Any) -> str:
        begun.set()
        for number in range(emitted):
            ctx.emit("line", {"number": number, "text": "x" * 2000})
        return "done"

    with station(sqlite_config) as here:
        server = here.session(chatty)
        store = here.runtime.store
        with closing(sqlite3.connect(path)) as other:
            pages = other.execute("PRAGMA page_count").fetchone()[0]
        with told_to_sqlite(store, f"max_page_count={pages + 40}"):
            run_id = server.submit_run(None)
            assert begun.wait(20)

            def refused() -> StorageConnectionFailed | None:
                try:
                    server.append_events([Event.new("note", server.session_id, data={"text": "x" * 50_000})])
                except StorageConnectionFailed as cause:
                    return cause
                return None

            full = wait_until(refused, description="the disk is full")
            assert ("full", True) == (full.details["reason"], full.retryable)
            assert RunStatus.RUNNING == server.get_run(run_id).status
        ended = here.ended(server, run_id)

        lines = [event.data["number"] for event in here.events(server, run_id) if event.type == "line"]
        assert (RunStatus.COMPLETED, list(range(emitted))) == (ended.status, lines)
    with closing(sqlite3.connect(path)) as other:
        assert [("ok",)] == other.execute("PRAGMA integrity_check").fetchall()


def test_a_read_only_database_is_a_typed_refusal(config: Config) -> None:
    """Nothing is accepted, readers go on, and the error says what to do; it may be writable again later."""
    world = World(config)
    server = world.server(world.session())
    store = world.runtime.store
    with ExitStack() as stack:
        if store.dialect == "sqlite":
            stack.enter_context(told_to_sqlite(store, "query_only=1"))
        else:
            with plain(config) as other:
                name = other.info.dbname
                other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only TO on")  # type: ignore[arg-type]
            store.close()

        with pytest.raises(StorageConnectionFailed, match="read-only") as refused:
            server.submit_run(1)

        assert ("read_only", True) == (refused.value.details["reason"], refused.value.retryable)
        assert 0 == server.status().queued_count
    world.close()


@on_postgresql
def test_noise_instead_of_an_answer_is_a_lost_connection(config: Config, proxy: SqlProxy) -> None:
    """What does not speak the protocol is not believed, and the next connection works."""
    with place(config.model_copy(update={"database_url": proxy.url})) as here:
        session_id = here.session()
        with pytest.raises(StorageError) as refused, here.store.read() as tx:
            proxy.mode = "garble"
            tx.sessions.count()

        assert refused.value.retryable
        assert 1 == here.log.page(session_id, after=0, limit=9).head


def test_a_damaged_row_is_typed_and_hurts_no_other(config: Config) -> None:
    """A row that is not what was stored says so (storage_read_failed); its neighbours are read."""
    world = World(config)
    server = world.server(world.session(max_queued_runs=9))
    bad, good = server.submit_run(1), server.submit_run(2)
    statement = "UPDATE runs SET metadata = '{noise' WHERE run_id = '{}'".replace("{}", bad)
    with world.runtime.store._engine.begin() as connection:
        connection.exec_driver_sql(statement)

    with pytest.raises(StorageError) as refused:
        server.get_run(bad)

    assert ("storage_read_failed", False) == (refused.value.code, refused.value.retryable)
    assert 2 == server.get_run(good).input
    world.close()


def test_an_unanswered_commit_is_not_taken_for_one_that_failed(
    sqlite_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nobody can say whether it was written, the caller is told so, and nothing is done twice."""
    with place(sqlite_config, connect_timeout_s=0.2) as here:
        session_id = here.session()
        commit = Store._commit

        def lost(store: Store, connection: Any) -> None:
            commit(store, connection)
            monkeypatch.setattr(Store, "_exclusive", away)
            raise CommitUnknown("lost")

        def away(store: Store, wait_s: float) -> Any:
            raise StorageConnectionFailed("away")

        monkeypatch.setattr(Store, "_commit", lost)
        with pytest.raises(StorageConnectionFailed, match="lost"):
            here.say(session_id)
        monkeypatch.undo()

        assert 2 == here.log.page(session_id, after=0, limit=9).head


def test_a_claim_whose_answer_went_away_with_the_database_is_executed_when_that_is_back(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent was not entered, so nothing is lost: who claimed it waits, and keeps its lease meanwhile."""
    claim, recall, asked = Coordinator._claim, Coordinator.recall, []

    def unanswered(moves: Coordinator, *what: Any) -> Any:
        claim(moves, *what)
        raise CommitUnknown("lost")

    def away(moves: Coordinator, *what: Any) -> Any:
        asked.append(what)
        if len(asked) < 4:
            raise StorageConnectionFailed("away")
        return recall(moves, *what)

    monkeypatch.setattr(Coordinator, "_claim", unanswered)
    monkeypatch.setattr(Coordinator, "recall", away)
    with station(config) as here:
        server = here.session(lambda ctx, given: given)

        ended = here.ended(server, server.submit_run("x"))

    assert (RunStatus.COMPLETED, "x", 1) == (ended.status, ended.output, ended.attempt)


@on_postgresql
@pytest.mark.parametrize("setting", ["on", "off"])
def test_a_database_that_may_lose_commits_is_told_at_the_first_connection(
    config: Config, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything stands on what SQL has acknowledged; `synchronous_commit=off` is for tests."""
    with plain(config) as other:
        name = other.info.dbname
        other.execute(f"ALTER DATABASE {name} SET synchronous_commit TO {setting}")  # type: ignore[arg-type]

    with place(config) as here:
        here.session()

    assert (setting == "off") == ("synchronous_commit=off" in caplog.text)


@on_postgresql
@pytest.mark.timeout(300)
def test_a_transcript_is_the_log_whatever_is_cut_lost_and_repeated(config: Config, proxy: SqlProxy) -> None:
    """Readers that resume by cursor at random, slow or not, through cut SQL and pub/sub connections."""
    count, chance = 3_000, random.Random(13)
    behind = config.model_copy(update={"database_url": proxy.url})
    with place(config, bus=LossyBus) as writer, place(behind) as reader, ThreadPoolExecutor(4) as threads:
        session_id = writer.session()

        def follow(per_connection: int, is_slow: bool) -> list[int]:
            taken: list[int] = []
            seen: Place | None = None
            while True:
                begin = 0 if seen is None else seen.sequence + 1
                with reader.follow(session_id, from_sequence=begin, seen=seen) as events:
                    for _ in range(per_connection):
                        event = tried_again(events.get)
                        if event is None:
                            return taken
                        taken.append(event.sequence)
                        if is_slow and event.sequence % 100 == 0:
                            threading.Event().wait(0.02)
                    seen = begin_at(events.cursor or "", what="cursor")[1]

        def tried_again(get: Callable[[], Event | None]) -> Event | None:
            while True:
                try:
                    return get()
                except StorageConnectionFailed:
                    continue

        following = [
            threads.submit(follow, *how) for how in ((10**9, False), (10**9, True), (97, False), (411, True))
        ]
        with closing(redis.Redis.from_url(config.redis_url)) as client:
            head = 1
            while head < count:
                head = writer.say(session_id, chance.choice((1, 2, 20, 64)))
                if chance.random() < 0.2:
                    client.client_kill_filter(_type="pubsub")
                if chance.random() < 0.2:
                    proxy.cut_all()
        last = writer.end_session(session_id)

        for one in following:
            assert list(range(1, last + 1)) == one.result(timeout=120)
