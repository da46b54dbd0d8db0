"""The public face is exactly what the design fixes, quick to import, and starts nothing."""

from __future__ import annotations

import inspect
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asm_celery
from asm_celery import (
    AgentSessions,
    ConcurrencyLimiter,
    ControlOperations,
    Event,
    Run,
    RunResult,
    Session,
    SessionServer,
    SessionStatusReport,
    Subscription,
    aio,
)

FACE = {
    "AgentSessions",
    "Config",
    "ConcurrencyLimiter",
    "ControlOperations",
    "Event",
    "Run",
    "RunResult",
    "Session",
    "SessionServer",
    "SessionStatusReport",
    "Subscription",
    "errors",
}

VERBS: dict[Any, set[str]] = {
    AgentSessions: {
        "from_env",
        "local",
        "agent",
        "register",
        "start_session",
        "attach",
        "list_sessions",
        "get_run",
        "delete_session",
        "prune",
        "limiter",
        "celery_app",
        "close",
    },
    SessionServer: {
        "agent",
        "runtime",
        "submit_run",
        "await_run",
        "execute_run",
        "cancel_run",
        "interrupt_run",
        "subscribe",
        "unsubscribe",
        "status",
        "drain",
        "begin_drain",
        "check_place",
        "get_run",
        "list_runs",
        "get_events",
        "append_events",
        "pause",
        "resume",
        "complete",
    },
    ConcurrencyLimiter: {
        "acquire_session_slot",
        "release_session_slot",
        "acquire_run_slot",
        "release_run_slot",
        "get_status",
        "get_limits",
        "set_limits",
        "close",
    },
    ControlOperations: {
        "interrupt",
        "cancel",
        "pause",
        "resume",
        "cancel_all",
        "interrupt_session",
        "hold",
        "release",
        "get_hold",
        "drain",
        "left_to_drain",
        "get_operation_status",
        "get_operation_history",
    },
    Subscription: {"get", "close", "closed", "cursor", "ended"},
}

SIGNATURES = {
    SessionServer.submit_run: [
        "input",
        "run_timeout",
        "queue_timeout",
        "max_attempts",
        "metadata",
        "idempotency_key",
        "on_busy",
    ],
    SessionServer.await_run: ["run_id", "timeout"],
    SessionServer.execute_run: ["input", "timeout", "submit_options"],
    SessionServer.cancel_run: ["run_id", "wait", "timeout"],
    SessionServer.interrupt_run: ["run_id", "wait", "timeout"],
    SessionServer.subscribe: ["from_sequence", "run_id", "type"],
    SessionServer.drain: ["timeout", "accept"],
    AgentSessions.start_session: [
        "agent",
        "max_concurrent_runs",
        "max_queued_runs",
        "metadata",
        "session_id",
        "if_exists",
    ],
    AgentSessions.list_sessions: ["status", "agent", "after", "limit"],
}


def test_the_package_exports_exactly_the_public_face() -> None:
    """A name that is added or lost is a decision, not an accident."""
    assert FACE == set(asm_celery.__all__)
    for name in FACE:
        assert getattr(asm_celery, name) is not None


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_a_class_has_exactly_its_verbs(kind: Any) -> None:
    """Every verb of the original is here under its name, and none by accident."""
    public = {name for name in vars(kind) if not name.startswith("_")}

    assert VERBS[kind] == public


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_a_verb_takes_exactly_these_arguments(function: Any) -> None:
    """Arguments are part of the face."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]

    assert SIGNATURES[function] == names


def test_the_async_face_has_the_same_verbs() -> None:
    """Whoever knows one face knows the other."""
    pairs = {
        AgentSessions: aio.AsyncAgentSessions,
        SessionServer: aio.AsyncSessionServer,
    }
    for sync, other in pairs.items():
        missing = VERBS[sync] - set(dir(other)) - {"begin_drain", "check_place", "runtime", "limiter"}
        assert set() == missing


def test_records_have_the_fields_of_the_design() -> None:
    """Tests outside this repository read these fields."""
    fields = {
        RunResult: {"run_id", "status", "output", "error", "token_usage", "attempts", "last_sequence"},
        SessionStatusReport: {
            "session_id",
            "in_flight_runs",
            "in_flight_count",
            "queued_runs",
            "queued_count",
            "max_concurrent_runs",
            "max_queued_runs",
            "subscribers",
            "status",
        },
    }
    for record, names in fields.items():
        assert names == set(record.__dataclass_fields__)
    assert {"session_id", "agent", "status", "metadata"} <= set(Session.__dataclass_fields__)
    assert {"run_id", "session_id", "status", "input", "output", "error"} <= set(Run.__dataclass_fields__)
    assert {"sequence", "type", "data", "run_id", "session_id"} <= set(Event.__dataclass_fields__)


def test_importing_the_package_imports_no_heavy_library_and_starts_nothing() -> None:
    """A web process that only needs a name pays for that name."""
    program = (
        "import json, sys, threading, asm_celery;"
        "print(json.dumps([sorted({name.partition('.')[0] for name in sys.modules}), threading.active_count()]))"
    )

    modules, threads = json.loads(_python(program))

    assert set() == {"celery", "sqlalchemy", "redis", "pydantic", "alembic"} & set(modules)
    assert 1 == threads


def test_using_the_whole_face_costs_little_more_than_importing_celery() -> None:
    """`import asm_celery` takes under 150 ms more than `import celery`; the package itself a few ms."""
    ours = statistics.median(_import_ms("import celery, asm_celery") for _ in range(5))
    celery = statistics.median(_import_ms("import celery") for _ in range(5))

    assert ours - celery < 150


def _import_ms(statement: str) -> float:
    program = f"import time; t=time.process_time(); {statement}; print((time.process_time()-t)*1000)"
    return float(_python(program))


def _python(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_type_checkers_see_the_same_face() -> None:
    """The stub beside the lazy package names what the package gives, from the same modules."""
    stub = Path(asm_celery.__file__).with_suffix(".pyi").read_text()
    told = set(re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.MULTILINE))

    assert {(asm_celery._FACE[name], name) for name in FACE - {"errors"}} == told - {("asm_celery", "errors")}
