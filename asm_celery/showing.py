"""What a message, a log line or a report may show of a value that somebody else chose.

One printable line of bounded length, without passwords; showing never raises, whatever the value is.
"""

from __future__ import annotations

import re
from typing import Final

_USERINFO: Final = re.compile(r"(?<=://)[^:/?#]*:.*@", re.DOTALL)
# what clients read from the query: redis-py, libpq, kombu
_IN_QUERY: Final = re.compile(r"([?&](?:[a-z_]*password|passphrase)=)[^&#]*", re.IGNORECASE)


def shown(value: object, limit: int = 80) -> str:
    """Return a value as a message may name it: its repr in one line, at most `limit` characters of it."""
    try:
        if isinstance(value, str):
            # cut first: the repr of 100 MB takes as much again
            value = str(value)[:limit]
        text = repr(value)[:limit]
    except Exception:  # noqa: BLE001 - a number too long for words, a ring, an object whose repr fails
        text = f"<{type(value).__name__[:limit]}>"
    return one_line(text)


def one_line(text: str) -> str:
    """Return text with all that is not printable escaped: line ends, escape sequences, turned directions."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text
    )


def mask(url: str) -> str:
    """Return a URL with its passwords replaced by ``***``, also one that is malformed."""

    def hidden(found: re.Match[str]) -> str:
        user = found[0].partition(":")[0]
        return f"{user}:***@"

    return _IN_QUERY.sub(r"\1***", _USERINFO.sub(hidden, url, count=1))
