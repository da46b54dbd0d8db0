"""What people and programs may put where a value is expected, and every verb there is to put it into."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from hypothesis import strategies as st

from asm_celery import AgentSessions, ConcurrencyLimiter, ControlOperations, SessionServer
from asm_celery.aio import AsyncAgentSessions, AsyncSessionServer
from asm_celery.aio.operators import AsyncControlOperations, AsyncLimiter
from asm_celery.model import Event, new_id

Doors = dict[str, Any]


class Unspeakable:
    """An object that cannot even be named."""

    def __repr__(self) -> str:
        raise RuntimeError("no name")


def nested(depth: int, kind: type) -> Any:
    """Return lists or maps inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def _circle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


# Each has hurt some program.
CLASSICS: Final[list[Any]] = [
    None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 64, -(1 << 70), 10**400, 10**5000, -(10**5000),
    0.5, -0.0, 1e308, 1e-320, math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal(1), 1j,
    "", " ", "\x00", "a\x00b", "\ud800", "a\udfff", "\r\nERROR forged", "\x1b[2J\x1b]0;x\x07", "\u202e\u2066",
    "%s%s%n", "{0.__class__}", "{config}", "${jndi:x}", "../../etc/passwd", "os.system", "a:b:{c}", "*", "[a-z]",
    "'; DROP TABLE runs; --", "asm:{x}:gate", "\uff45\uff43\uff48\uff4f", "\u0435cho", "echo\n", "run_", "x" * 10_000,
    "🙂" * 300,
    b"", b"\xff\x00", bytearray(b"x"), memoryview(b"x"), (), (1,), [], {}, set(), frozenset({1}), range(3),
    {1: 2}, {None: 1}, {"a": math.nan}, {"a": {1}}, {"\ud800": 1}, {"\x00": "\x00"}, {"": ""}, {"$ref": "#"},
    ["x"] * 1000, nested(60, list), nested(70, list), nested(900, dict), nested(5000, list), nested(100_000, list),
    _circle(), {"a": "x" * 70_000}, "x" * (1 << 20), [10**4400], object(), Unspeakable(), [Unspeakable()], object,
    len, lambda: 1, ValueError("x"), StopIteration(), datetime(2020, 1, 1), datetime.min, datetime.max,  # noqa: DTZ001, DTZ901
    datetime.now(UTC), datetime.max.replace(tzinfo=UTC), timedelta(days=1), ..., NotImplemented,
    (one for one in "ab"), iter([]), Event.new("note", "elsewhere"), type("Str", (str,), {})("chat-42"),
]  # fmt: skip

ODD: Final = st.one_of(
    st.sampled_from(CLASSICS),
    st.text(max_size=40),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Cf", "Zl"]), min_size=1, max_size=20),
    st.integers(),
    st.floats(),
    st.binary(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    ),
)

# Verbs that open or end what the test stands on, wait for ever when they are used well, or are for our own parts.
_NOT_ASKED: Final = {
    "local", "from_env", "close", "agent", "register", "left_to_drain", "begin_drain", "closing_sequence",
    "check_place",
}  # fmt: skip


@dataclass(frozen=True)
class Verb:
    """One public method of a door."""

    door: str
    name: str
    parameters: tuple[str, ...]
    required: frozenset[str]


def _verbs(door: str, kind: type) -> Iterator[Verb]:
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name.startswith("_") or name in _NOT_ASKED:
            continue
        # the options of an async verb stand in its sync twin
        twin = _TWINS.get(kind, kind)
        found = list(inspect.signature(getattr(twin, name, method)).parameters.values())[1:]
        named = [one for one in found if one.kind is not one.VAR_KEYWORD]
        yield Verb(
            door,
            name,
            tuple(one.name for one in named),
            frozenset(one.name for one in named if one.default is one.empty),
        )


_TWINS: Final[dict[type, type]] = {
    AsyncAgentSessions: AgentSessions,
    AsyncSessionServer: SessionServer,
    AsyncControlOperations: ControlOperations,
    AsyncLimiter: ConcurrencyLimiter,
}
SYNC: Final = [
    *_verbs("sessions", AgentSessions),
    *_verbs("server", SessionServer),
    *_verbs("control", ControlOperations),
    *_verbs("limiter", ConcurrencyLimiter),
]
ASYNC: Final = [
    *_verbs("sessions", AsyncAgentSessions),
    *_verbs("server", AsyncSessionServer),
    *_verbs("control", AsyncControlOperations),
    *_verbs("limiter", AsyncLimiter),
]


@st.composite
def calls(draw: Callable[..., Any], verbs: list[Verb], runs: list[str]) -> tuple[Verb, dict[str, Any]]:
    """Draw a verb and its arguments: some right, at least one of them odd where it takes any."""
    verb = draw(st.sampled_from(verbs))
    asked = [
        name
        for name in verb.parameters
        if name in verb.required or draw(st.booleans()) or name.endswith("timeout")
    ]
    odd = draw(st.sets(st.sampled_from(asked), min_size=1)) if asked else set()
    odd_events = st.lists(st.builds(odd_event, st.sampled_from(EVENT_FIELDS), ODD), max_size=3)
    return verb, {
        name: patient(
            name,
            draw(
                (odd_events if name == "events" and draw(st.booleans()) else ODD)
                if name in odd
                else right(name, runs)
            ),
        )
        for name in asked
    }


def right(name: str, runs: list[str]) -> st.SearchStrategy[Any]:
    """Return values that are legal for a parameter."""
    legal: dict[str, st.SearchStrategy[Any]] = {
        "agent": st.just("echo"),
        "session_id": st.sampled_from(["chat-42", "chat-43", "new-1"]),
        "run_id": st.sampled_from([*runs, new_id("run")]),
        "run_ids": st.just(runs[:2]),
        "events": st.just([Event.new("note", "chat-42")]),
        "type": st.sampled_from(["note", None, ["a", "b"]]),
        "metadata": st.just({"a": 1}),
        "if_exists": st.just("attach"),
        "on_busy": st.sampled_from(["enqueue", "reject", "interrupt"]),
        "by": st.just("me"),
        "limit": st.just(10),
        "accept": st.booleans(),
        "wait": st.booleans(),
        "idempotency_key": st.sampled_from([None, "k"]),
    }
    return legal.get(name, st.none() if name in ("status", "after", "since") else st.integers(1, 3))


EVENT_FIELDS: Final = tuple(set(Event.__dataclass_fields__) - {"sequence"})


def odd_event(field: str, value: Any) -> Event:
    """Return an event that is good but for one field, past the check of `Event.new`."""
    good: dict[str, Any] = {"type": "note", "session_id": "chat-42"}
    return Event(**{**good, field: value})


def patient(name: str, value: Any) -> Any:
    """Return the value, or a moment where it would be legal and long: nothing here shall wait."""
    if not name.endswith("timeout"):
        return value
    if value is None:
        return 0.001
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return 0.001 if is_number and 0 <= value < 1e9 else value
