"""What an attempt's events add up to: streamed text, token usage, cost, turns."""

from __future__ import annotations

import json
import threading
from typing import Any, Final

from asm_celery.model import Event
from asm_celery.states import EventType

# What an agent says of its usage is stored with its end: it must fit, and be numbers that JSON has.
_MOST_NAMES: Final = 100
_LONGEST_NAME: Final = 200
_LARGEST: Final = 1e15


class Tally:
    """The sums over one attempt's events; thread-safe, because an agent may emit from its own threads.

    Args:
        max_text_bytes: how much streamed text is kept, as JSON; the first part is kept, the log has it all.
    """

    def __init__(self, max_text_bytes: int) -> None:
        self._room = max_text_bytes - 2  # the quotes
        self._chunks: list[str] = []
        self._lock = threading.Lock()
        self._usage: dict[str, Any] = {}
        self._cost_usd: float | None = None
        self._turns = 0

    def add(self, event: Event) -> None:
        """Count one event."""
        with self._lock:
            if event.type == EventType.MESSAGE_STREAMED:
                self._add_text(event.data.get("content"))
            elif event.type == EventType.TOKEN_USAGE_UPDATED:
                self._add_usage(event.data)
            elif event.type == EventType.TURN_COMPLETED:
                self._turns += 1

    @property
    def text(self) -> str | None:
        """The streamed text so far; None when nothing was streamed."""
        with self._lock:
            return "".join(self._chunks) if self._chunks else None

    @property
    def token_usage(self) -> dict[str, Any]:
        """The numbers of all `token_usage_updated` events, added key by key; what is absurd is left out."""
        with self._lock:
            return dict(self._usage)

    @property
    def cost_usd(self) -> float | None:
        """Their `cost_usd` added; None when none was told."""
        with self._lock:
            return self._cost_usd

    @property
    def turn_count(self) -> int:
        """How many turns were completed."""
        with self._lock:
            return self._turns

    def _add_text(self, content: object) -> None:
        if not isinstance(content, str) or self._room <= 0:
            return
        size = _json_size(content)
        if size > self._room:
            content, size = _fitting(content, self._room), self._room
        self._room -= size
        if content:
            self._chunks.append(content)

    def _add_usage(self, data: dict[str, Any]) -> None:
        for key, value in data.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _LARGEST:
                continue
            if key == "cost_usd":
                self._cost_usd = (self._cost_usd or 0.0) + value
            elif key in self._usage or (len(self._usage) < _MOST_NAMES and len(key) <= _LONGEST_NAME):
                self._usage[key] = self._usage.get(key, 0) + value


def _json_size(text: str) -> int:
    return len(json.dumps(text)) - 2


def _fitting(text: str, room: int) -> str:
    """Return the longest beginning of `text` that takes at most `room` bytes as JSON."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _json_size(text[:middle]) <= room else (low, middle - 1)
    return text[:low]
