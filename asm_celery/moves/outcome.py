"""How an attempt ended, and the form in which its end is written: columns, terminal event, requeue event."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from asm_celery.codec import encode
from asm_celery.config import Config
from asm_celery.errors import LeaseLost
from asm_celery.model import Event, Run
from asm_celery.states import LONGEST_BACKOFF_S, EventType, RunStatus

# A terminal event carries the output too when it is small: a page that follows needs no second read.
_SMALL_OUTPUT: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended, as its executor saw it.

    Attributes:
        status: `completed`, `failed`, a stopped status, or `pending`: handed back before it ended, because
            its process must go, without using up an attempt.
        error: {code, message, details}.
    """

    status: RunStatus
    output: Any = None
    error: dict[str, Any] | None = None
    token_usage: dict[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None
    turn_count: int = 0


def columns_of(outcome: Outcome, config: Config) -> dict[str, Any]:
    """Return the columns of a run's end; raises InvalidInput for an output that is not JSON or too large."""

    def text(value: Any, what: str) -> str:
        return encode(value, what=what, max_bytes=max(config.max_output_bytes, 1 << 20))

    return {
        "output": None if outcome.output is None else text(outcome.output, "the output"),
        "error": None if outcome.error is None else text(outcome.error, "the error"),
        "token_usage": text(outcome.token_usage, "the token usage"),
        "cost_usd": outcome.cost_usd,
        "turn_count": outcome.turn_count,
    }


def as_asked(run: Run, status: RunStatus) -> dict[str, str | None]:
    """Return the columns in which the end of a run that was asked to stop differs from its outcome's."""
    if run.stop_reason == "run_timeout":
        error = {"code": "run_timeout", "message": f"the run took longer than {run.run_timeout:g} s"}
        return {"error": encode(error, what="the error", max_bytes=1 << 20)}
    return {} if status is RunStatus.TIMEOUT else {"error": None}


def told_of(run: Run, values: dict[str, Any]) -> dict[str, object]:
    """Return the data of a run's terminal event."""
    told: dict[str, object] = {"reason": run.stop_reason}
    if run.error is not None:
        told |= {
            "error_code": run.error.get("code"),
            "error_message": run.error.get("message"),
            "details": run.error.get("details") or None,
        }
    if run.token_usage:
        told["token_usage"] = run.token_usage
    if run.output is not None and len(values.get("output") or "") <= _SMALL_OUTPUT:
        told["output"] = run.output
    return told


def requeued_event(run: Run, outcome: Outcome, delay_s: float) -> Event:
    """Return the event that tells that an attempt was given back and when it is due."""
    error = outcome.error or {}
    data = {
        "attempt": run.attempt,
        "max_attempts": run.max_attempts,
        "error_code": error.get("code"),
        "error_message": error.get("message"),
        "delay_s": round(delay_s, 3),
    }
    return Event.new(
        EventType.RUN_REQUEUED,
        run.session_id,
        run_id=run.run_id,
        data=data,
        attempt=run.attempt,
        provider=run.agent,
    )


def backoff_s(attempt: int, config: Config) -> float:
    """Return how long a run waits after the failure of this attempt: doubling, and at most LONGEST_BACKOFF_S."""
    longest, first = LONGEST_BACKOFF_S / 1.2, config.retry_backoff_s
    # jitter: runs that failed together do not all come back together
    return float(min(longest, first * 2 ** (max(attempt, 1) - 1)) * random.uniform(0.8, 1.2))


def lost(run_id: str, claim: int, run: Run | None) -> LeaseLost:
    """Return the error that tells an attempt that its run, as it is now, has moved on."""
    now = "gone" if run is None else f"{run.status} under claim {run.claims}"
    return LeaseLost(
        f"claim {claim} of run {run_id} is no longer valid: the run is {now}; end the attempt",
        details={"run_id": run_id, "claim": claim},
    )
