"""Bad input gets a typed error at the door, with the value, the rule and the remedy; it leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from asm_celery import AgentSessions, SessionServer, errors
from asm_celery.config import Config
from asm_celery.model import Event, new_id
from asm_celery.queue.connection import check_version

UNKNOWN_RUN = new_id("run")


@pytest.fixture
def asm(config: Config) -> Iterator[AgentSessions]:
    """A process with one agent and no worker."""
    with AgentSessions(config) as made:
        made.register("echo", lambda ctx, value: value)
        yield made


@pytest.fixture
def server(asm: AgentSessions) -> SessionServer:
    """One session."""
    return asm.start_session("echo", session_id="chat-42")


def trace(asm: AgentSessions) -> tuple[int, int, set[bytes]]:
    """Sessions, runs and Redis keys there are."""
    client = redis.Redis.from_url(asm.config.redis_url)
    keys = set(client.scan_iter(match=f"{asm.config.keys.root}*"))
    client.close()
    sessions = asm.list_sessions(limit=1000)
    runs = sum(len(asm.attach(session.session_id).list_runs()) for session in sessions)
    return len(sessions), runs, keys


START: list[tuple[str, dict[str, Any], type[errors.AsmError], str]] = [
    ("no slots", {"max_concurrent_runs": 0}, errors.ValidationError, "max_concurrent_runs=0"),
    ("negative slots", {"max_concurrent_runs": -1}, errors.ValidationError, "1 to"),
    ("slots in words", {"max_concurrent_runs": "two"}, errors.ValidationError, "'two'"),
    ("negative bound", {"max_queued_runs": -1}, errors.ValidationError, "max_queued_runs=-1"),
    ("bound is true", {"max_queued_runs": True}, errors.ValidationError, "whole number"),
    ("malformed id", {"session_id": "a b{}"}, errors.ValidationError, "cannot be a session id"),
    ("empty id", {"session_id": ""}, errors.ValidationError, "cannot be a session id"),
    ("unknown if_exists", {"if_exists": "maybe"}, errors.ValidationError, "'error' or 'attach'"),
    ("metadata no object", {"metadata": [1]}, errors.ValidationError, "must be an object"),
    ("metadata not JSON", {"metadata": {"a": object()}}, errors.InvalidInput, "is not JSON"),
    ("metadata too large", {"metadata": {"a": "x" * 70_000}}, errors.InvalidInput, "the limit is 65536"),
]


@pytest.mark.parametrize(("case", "values", "kind", "words"), START, ids=[case[0] for case in START])
def test_start_session_refuses(
    asm: AgentSessions, case: str, values: dict[str, Any], kind: type[errors.AsmError], words: str
) -> None:
    """Rules of a session (SS-1, SS-2, SS-4, SS-7, SS-12)."""
    before = trace(asm)

    with pytest.raises(kind, match=words):
        asm.start_session("echo", **values)

    assert before == trace(asm)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("ecko", errors.AgentNotFound, "did you mean 'echo'"),
        ("os.system('x')", errors.ValidationError, "cannot be an agent's name"),
        ("../x", errors.ValidationError, "cannot be an agent's name"),
        ("", errors.ValidationError, "cannot be an agent's name"),
        (None, errors.ValidationError, "cannot be an agent's name"),
    ],
)
def test_unknown_agents_are_refused(
    asm: AgentSessions, name: Any, kind: type[errors.AsmError], words: str
) -> None:
    """A process with agents knows its own; names are never imported (SS-7)."""
    with pytest.raises(kind, match=words):
        asm.start_session(name)

    assert [] == asm.list_sessions()


def test_a_web_backend_without_agents_checks_only_the_form(config: Config) -> None:
    """Its workers are elsewhere, so it accepts any well-formed name."""
    with AgentSessions(config) as web:
        assert "anything" == web.start_session("anything").agent
        with pytest.raises(errors.ValidationError):
            web.start_session("any thing")


SUBMIT: list[tuple[str, Any, dict[str, Any], type[errors.AsmError], str]] = [
    ("an object", object(), {}, errors.InvalidInput, "is not JSON"),
    ("bytes", b"x", {}, errors.InvalidInput, "is not JSON"),
    ("NaN", math.nan, {}, errors.InvalidInput, "is not JSON"),
    ("a set", {1}, {}, errors.InvalidInput, "is not JSON"),
    ("keys that are no strings", {1: 2}, {}, errors.InvalidInput, "is not a string"),
    ("over 1 MiB", "x" * (1 << 20), {}, errors.InvalidInput, "the limit is 1048576"),
    ("NaN timeout", 1, {"run_timeout": math.nan}, errors.ValidationError, "run_timeout=nan"),
    ("negative timeout", 1, {"queue_timeout": -1}, errors.ValidationError, "queue_timeout=-1"),
    ("timeout in words", 1, {"run_timeout": "5"}, errors.ValidationError, "not a number of seconds"),
    ("no attempts", 1, {"max_attempts": 0}, errors.ValidationError, "max_attempts=0"),
    ("empty key", 1, {"idempotency_key": ""}, errors.ValidationError, "1 to 255"),
    ("unknown policy", 1, {"on_busy": "shout"}, errors.ValidationError, "enqueue, reject, interrupt"),
]


@pytest.mark.parametrize(
    ("case", "value", "options", "kind", "words"), SUBMIT, ids=[case[0] for case in SUBMIT]
)
def test_submit_refuses(
    asm: AgentSessions,
    server: SessionServer,
    case: str,
    value: Any,
    options: dict[str, Any],
    kind: type[errors.AsmError],
    words: str,
) -> None:
    """Rules of a run (SS-21)."""
    before = trace(asm)

    with pytest.raises(kind, match=words):
        server.submit_run(value, **options)

    assert before == trace(asm)
    assert 2 == server.get_events()[-1].sequence


READS: list[tuple[str, Callable[[SessionServer], object], type[errors.AsmError]]] = [
    ("await unknown", lambda s: s.await_run(UNKNOWN_RUN, timeout=60), errors.RunNotFound),
    ("await malformed", lambda s: s.await_run("nonsense"), errors.RunNotFound),
    ("await NaN", lambda s: s.await_run(UNKNOWN_RUN, timeout=math.nan), errors.ValidationError),
    ("await negative", lambda s: s.await_run(UNKNOWN_RUN, timeout=-1), errors.ValidationError),
    ("cancel unknown", lambda s: s.cancel_run(UNKNOWN_RUN), errors.RunNotFound),
    ("interrupt malformed", lambda s: s.interrupt_run("run_1"), errors.RunNotFound),
    ("subscribe before the beginning", lambda s: s.subscribe(-1), errors.ValidationError),
    ("subscribe from words", lambda s: s.subscribe("1"), errors.ValidationError),  # type: ignore[arg-type]
    ("subscribe to no word", lambda s: s.subscribe(type="two words"), errors.InvalidEventType),
    ("subscribe to a number", lambda s: s.subscribe(type=7), errors.ValidationError),  # type: ignore[arg-type]
    ("subscribe to an unknown run", lambda s: s.subscribe(run_id=UNKNOWN_RUN), errors.RunNotFound),
    ("a page of nothing", lambda s: s.get_events(limit=0), errors.ValidationError),
    ("a page of too much", lambda s: s.get_events(limit=1001), errors.ValidationError),
    ("a cursor below 0", lambda s: s.get_events(after=-1), errors.ValidationError),
    ("an unknown status", lambda s: s.list_runs(status="done"), errors.InvalidStatus),
    ("runs behind an unknown one", lambda s: s.list_runs(after=UNKNOWN_RUN), errors.RunNotFound),
    ("drain NaN", lambda s: s.drain(timeout=math.nan), errors.ValidationError),
    (
        "an event of another session",
        lambda s: s.append_events([Event.new("note", "elsewhere")]),
        errors.ValidationError,
    ),
    ("no event at all", lambda s: s.append_events([{"type": "note"}]), errors.ValidationError),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("case", "call", "kind"), READS, ids=[case[0] for case in READS])
def test_a_session_refuses(
    server: SessionServer, case: str, call: Callable[[SessionServer], object], kind: type[errors.AsmError]
) -> None:
    """At once, typed, and with nothing written (SS-65, SS-89, SS-131, SS-134, ST-21, ST-25)."""
    with pytest.raises(kind):
        call(server)

    assert 2 == server.get_events()[-1].sequence


@pytest.mark.parametrize("session_id", ["unknown", "a b", "", "{x}", "x" * 200, None])
def test_attach_refuses_what_is_not_there(asm: AgentSessions, session_id: Any) -> None:
    """Unknown and malformed ids are the same answer (SS-8, SV-4)."""
    with pytest.raises(errors.SessionNotFound):
        asm.attach(session_id)


def test_attach_refuses_another_agent(asm: AgentSessions, server: SessionServer) -> None:
    """The stored settings stay; another agent is another session."""
    asm.register("other", lambda ctx, value: value)

    with pytest.raises(errors.InvalidOperation, match="belongs to agent 'echo'"):
        asm.start_session("other", session_id="chat-42", if_exists="attach")
    assert (
        1
        == asm.start_session("echo", session_id="chat-42", if_exists="attach", max_concurrent_runs=5)
        .status()
        .max_concurrent_runs
    )


def test_a_taken_id_is_refused(asm: AgentSessions, server: SessionServer) -> None:
    """Nothing is overwritten (SM-5, SV-3)."""
    with pytest.raises(errors.AlreadyExists, match="attach"):
        asm.start_session("echo", session_id="chat-42")


def test_a_completed_session_accepts_nothing(asm: AgentSessions, server: SessionServer) -> None:
    """And is not reopened by attaching (SS-9, SS-32)."""
    server.complete()
    handle = asm.start_session("echo", session_id="chat-42", if_exists="attach")

    with pytest.raises(errors.InvalidOperation, match="completed"):
        handle.submit_run("x")
    with pytest.raises(errors.InvalidTransition):
        handle.resume()
    assert "completed" == handle.status().status


def test_a_run_of_another_session_is_unknown_here(asm: AgentSessions, server: SessionServer) -> None:
    """Ids of runs are global, handles are not."""
    run_id = server.submit_run("x")
    other = asm.start_session("echo")

    for call in (other.get_run, other.await_run, other.cancel_run):
        with pytest.raises(errors.RunNotFound):
            call(run_id)
    server.cancel_run(run_id)


@pytest.mark.parametrize(
    ("about", "is_refused"),
    [
        ({"redis_version": "6.2.14"}, True),
        ({"redis_version": "7.0.0"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, False),
        ({"redis_version": "8.2.3"}, False),
    ],
)
def test_an_older_redis_is_refused(about: dict[str, str], is_refused: bool) -> None:
    """The scripts need Redis 7.0 or Valkey; the message says so."""

    class Answering(redis.Redis):
        def info(self, *_: Any, **__: Any) -> Any:
            return about

    if not is_refused:
        check_version(Answering())
        return
    with pytest.raises(errors.DependencyNotAvailable, match=r"Redis >= 7\.0"):
        check_version(Answering())
