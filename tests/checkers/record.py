"""What was seen of a run of the system: plain records, no behaviour.

Times are seconds of the host's monotonic clock, which all processes share and no skewed clock touches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.acceptance.ledger import Entry


class Anomaly(NamedTuple):
    """A broken promise: its checker's name, and a sentence that names runs and sequences."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session and its counters."""

    session_id: str
    slots: int
    last_sequence: int
    last_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as SQL has it at the end; `output` and `error_code` as stored."""

    run_id: str
    session_id: str
    position: int
    status: str
    attempt: int = 1
    max_attempts: int = 1
    claims: int = 1
    event_position: int = 0
    idempotency_key: str | None = None
    output: Any = None
    error_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A row of the event log.

    Attributes:
        data: of the runtime's own events (``run_*``); empty for others.
        mark: the ``n`` of an agent that counts what it says, 1, 2, 3 ... in each attempt.
    """

    sequence: int
    type: str
    run_id: str | None = None
    event_id: str = ""
    attempt: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    mark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """A submit: when it was called and returned, and the id that was acknowledged (None: it raised)."""

    session_id: str
    called: float
    returned: float
    run_id: str | None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop that was acknowledged: the state and the deciding kind of its receipt."""

    run_id: str
    state: str
    kind: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """What one caller of `await_run` got."""

    run_id: str
    status: str
    output: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What one subscriber received, over all its connections, each resumed where the last ended.

    Attributes:
        after: the cursor it began behind.
        received: (sequence, event id) in the order of receipt; the id may be empty.
        run_id, types: its filter.
        is_whole: it must have received all there is; else a prefix of it.
    """

    subscriber: str
    session_id: str
    after: int
    received: Sequence[tuple[int, str]]
    run_id: str | None = None
    types: frozenset[str] | None = None
    is_whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """The global limit of runs, from when `set_limits` returned; None: no limit."""

    at: float
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An injected fault.

    Attributes:
        until: when it was healed; for ever for a killed process.
        pids: the processes that were killed, frozen past their lease or cut from SQL and Redis both: the
            runs of these, and of no other, may be declared lost.
        runs: runs that end their process themselves.
        recovered_s, bound_s: how long recovery took, and may take.
    """

    kind: str
    at: float
    until: float = math.inf
    pids: frozenset[int] = frozenset()
    runs: frozenset[str] = frozenset()
    recovered_s: float | None = None
    bound_s: float | None = None


@dataclass(slots=True, kw_only=True)
class History:
    """Everything that was seen.

    Attributes:
        events: the log of each session, by sequence.
        keys: what Redis holds after the drain, without the namespace's root.
        processes: living process ids of runs' process groups after the drain.
        limit_settles_s: how long leases granted under an older, higher limit may still start.
    """

    sessions: dict[str, SessionRow] = field(default_factory=dict)
    runs: dict[str, RunRow] = field(default_factory=dict)
    events: dict[str, list[Logged]] = field(default_factory=dict)
    ledger: Sequence[Entry] = ()
    submits: Sequence[Submit] = ()
    stops: Sequence[Stop] = ()
    awaited: Sequence[Awaited] = ()
    transcripts: Sequence[Transcript] = ()
    limits: Sequence[LimitChange] = ()
    faults: Sequence[Fault] = ()
    keys: Sequence[str] = ()
    processes: Sequence[int] = ()
    limit_settles_s: float = 10.0
