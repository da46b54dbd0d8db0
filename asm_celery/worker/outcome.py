"""What the end of an agent means for its run: pure functions from facts to `Outcome`."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Final

from asm_celery.codec import decode, encode
from asm_celery.config import Config
from asm_celery.errors import AsmError, InvalidInput
from asm_celery.moves.outcome import Outcome
from asm_celery.showing import shown
from asm_celery.states import STOPPED_STATUS, RunStatus, StopKind
from asm_celery.worker.attempt import SHUTDOWN, Attempt
from asm_celery.worker.tally import Tally

TRACEBACK_TAIL: Final = 4096
MESSAGE_HEAD: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an agent was left: it returned `value`, or `error` was raised."""

    value: Any = None
    error: BaseException | None = None


def judge(ending: Ending, attempt: Attempt, tally: Tally, config: Config, *, may_return: bool) -> Outcome:
    """Return what the run becomes.

    Args:
        may_return: True if the run may be entered again, should its process have to go.

    A stop that was asked for decides, whatever the agent did about it; what it had produced is kept as
    output.  Else an exception means `failed`, and a value `completed`, if it is JSON of bounded size.
    """
    kind = attempt.stop_kind
    if kind == SHUTDOWN:
        return _shut_down(tally, _kept(ending, tally, config), may_return=may_return)
    if kind is not None:
        # somebody's wish, not an error
        return _outcome(STOPPED_STATUS[StopKind(kind)], tally, output=_kept(ending, tally, config))
    if ending.error is not None:
        return failed(ending.error, tally)
    try:
        return _outcome(RunStatus.COMPLETED, tally, output=_output(ending, config))
    except InvalidInput as cause:
        return _outcome(RunStatus.FAILED, tally, error=_error("invalid_output", cause.message, cause.details))


def failed(cause: BaseException, tally: Tally) -> Outcome:
    """Return `failed` with the code of an AsmError, ``agent_error`` for any other exception."""
    details: dict[str, Any] = {
        "type": type(cause).__name__,
        "traceback": "".join(traceback.format_exception(cause))[-TRACEBACK_TAIL:],
    }
    if isinstance(cause, AsmError):
        error = _error(cause.code, cause.message, {**cause.details, **details})
    else:
        error = _error("agent_error", _text(cause), details)
    return _outcome(RunStatus.FAILED, tally, error=error)


def unstorable(outcome: Outcome, cause: AsmError) -> Outcome:
    """Return the outcome of an attempt whose last transaction the database refused for good."""
    return Outcome(
        status=outcome.status if outcome.status != RunStatus.COMPLETED else RunStatus.FAILED,
        output=None,
        error=_error(cause.code, f"the end of this run could not be stored: {cause.message}"),
        token_usage=outcome.token_usage,
        cost_usd=outcome.cost_usd,
        turn_count=outcome.turn_count,
    )


def _shut_down(tally: Tally, kept: Any, *, may_return: bool) -> Outcome:
    """Return how a run leaves a worker that must end: handed back if it may be, else interrupted."""
    return _outcome(
        RunStatus.PENDING if may_return else RunStatus.INTERRUPTED,
        tally,
        output=kept,
        error=_error(
            "worker_shutdown", "the worker was shut down before this run had ended: submit it again"
        ),
    )


def _outcome(
    status: RunStatus, tally: Tally, *, output: Any = None, error: dict[str, Any] | None = None
) -> Outcome:
    return Outcome(
        status=status,
        output=output,
        error=error,
        token_usage=tally.token_usage,
        cost_usd=tally.cost_usd,
        turn_count=tally.turn_count,
    )


def _output(ending: Ending, config: Config) -> Any:
    return decode(encode(ending.value, what="output", max_bytes=config.max_output_bytes))


def _kept(ending: Ending, tally: Tally, config: Config) -> Any:
    """Return what a stopped attempt had produced: a late result, else the text streamed so far."""
    try:
        value = _output(ending, config)
    except InvalidInput:
        value = None
    return tally.text if value is None else value


def _error(code: str, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"code": code, "message": message[:MESSAGE_HEAD], "details": _storable(details or {})}


def _text(cause: BaseException) -> str:
    # an exception's own __str__ is the agent's code, too
    try:
        return str(cause) or type(cause).__name__
    except Exception:  # noqa: BLE001 - whatever it raises, the run ends with a message
        return type(cause).__name__


def _storable(details: dict[str, Any]) -> dict[str, Any]:
    """Return details that are JSON; what an agent put there that is not is told by its repr."""
    stored: dict[str, Any] = {}
    for key, value in details.items():
        try:
            stored[str(key)] = decode(encode(value, what="details", max_bytes=4 * TRACEBACK_TAIL))
        except InvalidInput:
            stored[str(key)] = shown(value, 200)
    return stored
