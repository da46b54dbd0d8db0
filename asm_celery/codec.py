"""JSON in and out, with limits: the one place where a caller's value becomes text.

Text is ASCII (lone surrogates survive as escapes, so any Python str can be stored), NaN and Infinity
are refused because JSON has no word for them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from asm_celery.errors import InvalidInput, StorageError
from asm_celery.showing import shown

# deeper JSON is read by no program with the default settings of every language, and by ours not on every stack
MAX_DEPTH: Final = 64
type_names = "null, true, false, numbers, strings, lists and objects with string keys"

# made once: what json.dumps makes anew for each value costs more than a small value does
_ENCODER: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

JSONValue = None | bool | int | float | str | list[Any] | dict[str, Any]


def _check_shape(value: Any, most: int) -> None:
    # level by level, so that a deep value needs no deep stack
    level, depth, count = [value], 0, 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    # json.dumps would quietly turn the keys 1, None and True into strings
                    if not isinstance(key, str):
                        raise TypeError(f"object key {shown(key)} is not a string")
                below.extend(item.values())
            elif isinstance(item, (list, tuple)):
                below.extend(item)
            # each takes a byte at least: a few lists that hold each other many times are many values
            if count + len(below) > most:
                raise ValueError(f"it has more values than fit into {most} bytes")
        level, depth, count = below, depth + 1, count + len(below)


def encode(value: Any, *, what: str, max_bytes: int) -> str:
    """Return `value` as JSON text of at most `max_bytes`.

    Raises:
        InvalidInput: not JSON, nested more than 64 deep, or too large; names `what`, the rule and the remedy.
    """
    try:
        _check_shape(value, max_bytes)
        text = _ENCODER.encode(value)
    except (TypeError, ValueError) as cause:
        reason = str(cause)
        raise InvalidInput(
            f"{what} of type {type(value).__name__} is not JSON ({reason}): use {type_names}",
            details={"what": what, "reason": reason},
        ) from None
    if len(text) > max_bytes:
        raise InvalidInput(
            f"{what} has {len(text)} bytes as JSON, the limit is {max_bytes}: store large data elsewhere "
            "and pass a reference",
            details={"what": what, "bytes": len(text), "limit": max_bytes},
        )
    return text


def decode(text: str | None) -> Any:
    """Return the value of JSON text written by `encode`; None for None.

    Raises:
        StorageError: it is not what was written: the database's files or its answer are damaged.
    """
    try:
        return None if text is None else json.loads(text)
    except ValueError as cause:
        raise StorageError(
            f"the database gave {text!r:.60} for what was stored as JSON: its files are damaged, restore them "
            "from a backup",
            code="storage_read_failed",
        ) from cause


def digest(text: str) -> str:
    """Return a short stable fingerprint of JSON text (compare inputs under one idempotency key).

    Equal values have equal fingerprints: the order of an object's keys means nothing.
    """
    # without an object in it there is no order to forget
    canonical = _CANONICAL.encode(json.loads(text)) if "{" in text else text
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
