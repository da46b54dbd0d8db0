"""What a command ends with: the table of exit codes, and the one function that maps errors to them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from asm_celery import errors
from asm_celery.states import RunStatus


class Exit(IntEnum):
    """The exit codes; the last five are those of sysexits, timeout(1) and the shell."""

    COMPLETED = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 3
    NOT_FOUND = 4
    REFUSED = 5
    UNAVAILABLE = 69
    TRY_AGAIN = 75
    TIMED_OUT = 124
    CTRL_C = 130
    TERMINATED = 143


MEANING: Final[Mapping[Exit, str]] = {
    Exit.COMPLETED: "completed; the answer is on stdout",
    Exit.FAILED: "the run failed, or something unexpected happened",
    Exit.USAGE: "wrong usage or setting",
    Exit.STOPPED: "the run was cancelled or interrupted",
    Exit.NOT_FOUND: "no such session or run",
    Exit.REFUSED: "refused: busy, queue full, or not possible in the present state",
    Exit.UNAVAILABLE: "no Redis, no database (or none that is migrated), no worker",
    Exit.TRY_AGAIN: "try again",
    Exit.TIMED_OUT: "the time allowed has passed",
    Exit.CTRL_C: "Ctrl-C",
    Exit.TERMINATED: "SIGTERM",
}

# The first that fits decides.
_ERRORS: Final[Mapping[type[errors.AsmError], Exit]] = {
    errors.RunTimeout: Exit.TIMED_OUT,
    errors.RunFailed: Exit.FAILED,
    errors.RunCancelled: Exit.STOPPED,
    errors.RunInterrupted: Exit.STOPPED,
    errors.PatienceEnded: Exit.TIMED_OUT,
    errors.AgentNotFound: Exit.NOT_FOUND,
    errors.NotFound: Exit.NOT_FOUND,
    errors.ValidationError: Exit.USAGE,
    errors.AlreadyExists: Exit.REFUSED,
    errors.InvalidOperation: Exit.REFUSED,
    errors.InvalidCursor: Exit.REFUSED,
    errors.LimitExceeded: Exit.REFUSED,
    errors.StorageError: Exit.UNAVAILABLE,
    errors.DependencyNotAvailable: Exit.UNAVAILABLE,
    errors.LeaseLost: Exit.TRY_AGAIN,
    errors.InternalError: Exit.TRY_AGAIN,
}


def of_error(error: errors.AsmError) -> Exit:
    """Return the exit code that an error stands for."""
    for kind, code in _ERRORS.items():
        if isinstance(error, kind):
            return code
    return Exit.TRY_AGAIN if error.retryable else Exit.FAILED


def of_status(status: RunStatus) -> Exit:
    """Return the exit code of a run that ended so."""
    return {
        RunStatus.COMPLETED: Exit.COMPLETED,
        RunStatus.FAILED: Exit.FAILED,
        RunStatus.CANCELLED: Exit.STOPPED,
        RunStatus.INTERRUPTED: Exit.STOPPED,
        RunStatus.TIMEOUT: Exit.TIMED_OUT,
    }[status]


def explained() -> str:
    """Return the table as lines, for ``asm --help``."""
    return "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANING.items())
