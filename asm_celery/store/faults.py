"""What an error of the database means: try again at once, try again later, or never.

Pure: it reads the driver's code, never its prose, but for the one word that both drivers lack a code for.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from sqlalchemy import exc

from asm_celery.errors import MigrationRequired, StorageBusy, StorageConnectionFailed, StorageError

P = ParamSpec("P")
T = TypeVar("T")

_NO_TABLE: Final = ("no such table", "no such column", "UndefinedTable", "UndefinedColumn")
# SQLSTATE, or the first part of SQLite's name of the error, and what it means in our words.
_CONFLICTS: Final = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "55P03": "a lock was not free in time",
}
_BUSY: Final = {"SQLITE_BUSY": "another process is writing", "53300": "the server takes no more connections"}
_REASONS: Final = {
    "53100": "full",
    "53200": "memory",
    "25006": "read_only",
    "SQLITE_FULL": "full",
    "SQLITE_READONLY": "read_only",
    "SQLITE_IOERR": "io_error",
    "SQLITE_CORRUPT": "corrupt",
    "SQLITE_NOTADB": "corrupt",
    "XX001": "corrupt",
    "XX002": "corrupt",
}
_REMEDIES: Final = {
    "full": "its disk is full: make room, and what waits goes on",
    "memory": "it has no memory left: what waits goes on when it has",
    "read_only": "it is read-only: let this user write to the file and its folder, or name the primary server",
    "io_error": "its disk failed: look at the machine, and try again",
    "corrupt": "its files are damaged: restore them from a backup",
}
# A frozen client is ended by the server after 5 s, which is also how long a lock is waited for: the second
# try meets a free lock.  More than this and the caller should be told.
_TRIES: Final = 8
_PATIENCE_S: Final = 11.0
_FIRST_PAUSE_S: Final = 0.01


class Conflict(StorageBusy):
    """The transaction was rolled back for what passes by itself; the same one may well commit now."""


class Spoiled(Conflict):
    """A part of a transaction failed so that the database rolled back all of it."""


class CommitUnknown(StorageConnectionFailed):
    """The answer to COMMIT was lost: the transaction is stored as a whole, or not at all."""


def retried(move: Callable[P, T]) -> Callable[P, T]:
    """Do a move again while its transaction loses a conflict, with growing pauses and jitter.

    The move's transaction must be the first thing it does that others can see: a conflict is raised when
    it has been rolled back, so the move has then done nothing.
    """

    @wraps(move)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        until = time.monotonic() + _PATIENCE_S
        for tries in range(1, _TRIES):
            try:
                return move(*args, **kwargs)
            except Conflict:
                if time.monotonic() > until:
                    raise
                # those who met must not meet again in step
                time.sleep(_FIRST_PAUSE_S * 2**tries * random.random())
        return move(*args, **kwargs)

    return again


def typed(cause: exc.DBAPIError, where: str) -> StorageError:
    """Return the error of the tree for one of a driver; nothing was written.

    Args:
        where: the database's URL without its password.
    """
    original = cause.orig
    kind, words = type(original).__name__, " ".join(str(original).split()) or "no text"
    if any(sign in words or sign == kind for sign in _NO_TABLE):
        return MigrationRequired(
            f"the database {where} has no asm_celery schema, or an old one: run `asm migrate`"
        )
    code = code_of(original)
    if code in _CONFLICTS:
        return Conflict(
            f"the database rolled back ({_CONFLICTS[code]}): try again", details={"reason": "conflict"}
        )
    if code in _BUSY:
        return StorageBusy(
            f"the database {where} is busy ({_BUSY[code]}): nothing was written; try again",
            details={"reason": "busy"},
        )
    if code in _REASONS:
        reason = _REASONS[code]
        said = f"the database {where} refused ({words:.200}): {_REMEDIES[reason]}; nothing was written"
        if reason == "corrupt":
            return StorageError(said, code="storage_read_failed", details={"reason": reason})
        return StorageConnectionFailed(said, details={"reason": reason})
    if isinstance(cause, (exc.IntegrityError, exc.DataError, exc.ProgrammingError)):
        return StorageError(f"the database refused the write: {words}", code="storage_write_failed")
    return StorageConnectionFailed(
        f"the database {where} cannot be reached or did not answer in time ({kind}: {words:.200}): nothing was "
        "acknowledged; try again when it is back",
        details={"reason": "away"},
    )


def code_of(original: BaseException | None) -> str:
    """Return the SQLSTATE, or SQLite's word for the error without its extension; empty if there is none."""
    if isinstance(original, sqlite3.Error):
        name = str(getattr(original, "sqlite_errorname", "") or "")
        return "_".join(name.split("_")[:2])
    return str(getattr(original, "sqlstate", None) or "")


def is_definite(original: BaseException | None) -> bool:
    """Return whether an error that answered COMMIT says for certain that it did not happen."""
    return code_of(original).startswith(("40", "23", "25", "SQLITE_BUSY"))
