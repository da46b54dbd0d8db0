"""The lines of a worker's log: what a message or an agent says can make no line that looks like one of ours.

Each line of the log begins a record, or has a mark before it; what is not printable is escaped.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, Final

from asm_celery.showing import one_line

MARK: Final = "  | "


class Lines(logging.Formatter):
    """Another formatter, given only what is harmless.

    Args:
        inner: the formatter that Celery made for a handler.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Format a copy of the record: other handlers may want it as it was."""
        message = record.getMessage()
        if message.isprintable() and not record.exc_info and not record.exc_text:
            # nothing to mark, as in most: the copy would cost as much as all the rest
            return self._inner.format(record)
        safe = copy.copy(record)
        safe.msg, safe.args = marked(message), None
        trace = record.exc_text or (record.exc_info and self._inner.formatException(record.exc_info))
        safe.exc_text = MARK + marked(trace) if trace else None
        return self._inner.format(safe)


def marked(text: str) -> str:
    """Return text with a mark before each line but the first."""
    return f"\n{MARK}".join(one_line(line) for line in text.splitlines())


def keep_lines(logger: logging.Logger, **_: Any) -> None:
    """Have all handlers of a logger write marked lines; a receiver of Celery's signals."""
    for handler in logger.handlers:
        if handler.formatter is not None and not isinstance(handler.formatter, Lines):
            handler.setFormatter(Lines(handler.formatter))
