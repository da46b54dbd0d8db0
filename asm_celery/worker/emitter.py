"""What an agent says becomes events: checked, measured, counted and put into the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from asm_celery.codec import decode, encode
from asm_celery.config import Config
from asm_celery.errors import InvalidInput
from asm_celery.model import Event
from asm_celery.moves.admission import check_event
from asm_celery.moves.coordinator import Claim
from asm_celery.showing import shown
from asm_celery.states import EventType, check_event_type
from asm_celery.worker.outbox import Outbox
from asm_celery.worker.tally import Tally


class Emitter:
    """The events of one attempt; thread-safe."""

    def __init__(self, claim: Claim, outbox: Outbox, tally: Tally, config: Config) -> None:
        self._run = claim.run
        self._outbox = outbox
        self._tally = tally
        self._max_bytes = config.max_event_bytes
        self._max_metadata_bytes = config.max_metadata_bytes

    @property
    def text(self) -> str | None:
        """What the agent has streamed so far; None when it streamed nothing."""
        return self._tally.text

    def emit(
        self,
        event_type: object,
        data: object = None,
        *,
        metadata: object = None,
        event_id: str | None = None,
        timestamp: datetime | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Put one event into the outbox; blocks while too much waits.

        Raises:
            InvalidEventType: not a word, or one of the runtime's own.
            InvalidInput: the data is not a JSON object, or too large.
            InvalidOperation: the attempt has ended.
            StopRun: its claim has passed to another.
        """
        given: dict[str, Any] = {"event_id": event_id, "timestamp": timestamp}
        text, copied = self._copied(data, what="event data", max_bytes=self._max_bytes)
        note, noted = self._copied(metadata, what="event metadata", max_bytes=self._max_metadata_bytes)
        event = Event(
            type=check_event_type(event_type, from_agent=True),
            session_id=self._run.session_id,
            run_id=self._run.run_id,
            attempt=self._run.attempt,
            provider=self._run.agent,
            data=copied,
            metadata=noted,
            correlation_id=correlation_id,
            **{name: value for name, value in given.items() if value is not None},
        )
        if any(value is not None for value in (event_id, timestamp, correlation_id)):
            check_event(event)
        self._outbox.put(event, len(text) + len(note))
        self._tally.add(event)

    def emit_item(self, item: object) -> None:
        """Put what a generator yielded into the outbox.

        A str is a `message_streamed`; a map is ``{"type": ..., "data": {...}}`` or ``{"type": ..., **data}``;
        an Event keeps its type, data, metadata, id, time and correlation; None is only a breath.

        Raises:
            InvalidInput: anything else; and what `emit` raises.
        """
        if item is None:
            return
        if isinstance(item, str):
            self.emit(EventType.MESSAGE_STREAMED, {"content": item})
        elif isinstance(item, Event):
            self.emit(
                item.type,
                item.data,
                metadata=item.metadata,
                event_id=item.event_id,
                timestamp=item.timestamp,
                correlation_id=item.correlation_id,
            )
        elif isinstance(item, Mapping) and "type" in item:
            rest = {key: value for key, value in item.items() if key != "type"}
            is_plain = rest.keys() <= {"data", "metadata"} and isinstance(rest.get("data", {}), Mapping)
            if is_plain:
                self.emit(item["type"], rest.get("data"), metadata=rest.get("metadata"))
            else:
                self.emit(item["type"], rest)
        else:
            raise InvalidInput(
                f"agent {self._run.agent!r} yielded {shown(item)}, which cannot become an event: yield a str, "
                "a map with a type, or an Event",
                details={"agent": self._run.agent, "type": type(item).__name__},
            )

    def _copied(self, value: object, *, what: str, max_bytes: int) -> tuple[str, dict[str, Any]]:
        if value is None:
            return "", {}
        if not isinstance(value, Mapping):
            raise InvalidInput(
                f"{what} must be an object, got {shown(value)}: give a dict with string keys",
                details={"what": what, "type": type(value).__name__},
            )
        # a copy, because the event is written later and the agent may go on changing its own
        text = encode(dict(value), what=what, max_bytes=max_bytes)
        return text, decode(text)
