"""What a worker of ours takes from the broker, and what it outlives.

Whoever reaches the broker can put anything there.  What is no doorbell is dropped here, with a line in the
log, before Celery makes a request of it; and what Celery or kombu trip over ends neither the worker nor what
it executes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Final

from celery.worker.consumer import Consumer
from kombu import compression
from kombu.exceptions import ContentDisallowed, DecodeError

from asm_celery.dispatch import TASK
from asm_celery.errors import ValidationError
from asm_celery.showing import shown
from asm_celery.worker.doorbell import headers_of

log = logging.getLogger("asm_celery.worker")

NAME: Final = f"{__name__}:DoorbellConsumer"
# What reading a message of somebody else's making can raise, in Celery, in kombu or in a codec.
_MISREAD: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class DoorbellConsumer(Consumer):
    """Celery's consumer, behind a door."""

    loop: Callable[..., Any]
    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loop = self.loop

        def outlive(*parts: Any) -> Any:
            try:
                return loop(*parts)
            except _MISREAD as cause:
                self._life.on_message()
                # kombu's transport read what is no message at all: it is off the list by now, and a new
                # connection goes on behind it
                log.warning("the broker held what is no message: %s", shown(cause, 200))
                raise ConnectionResetError("the broker held what is no message") from cause

        self.loop = outlive

    @property
    def _life(self) -> Any:
        task: Any = self.app.tasks[TASK]
        return task.life

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what hears each message: Celery's handler, for a doorbell and for others' tasks."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            self._life.on_message()
            try:
                if _is_welcome(message):
                    handle(message)
                    return
            except self.connection_errors:
                raise
            except _MISREAD as cause:
                log.warning("dropped a message that cannot be read: %s", shown(cause, 200))
            if not message.acknowledged:
                message.reject_log_error(log, self.connection_errors)

        return on_message


def refuse_other_codecs(accepted: Collection[str]) -> None:
    """Raise ValidationError unless JSON is all that a worker reads: pickle would run what a message brings."""
    if others := sorted(set(accepted) - {"json", "application/json"}):
        raise ValidationError(
            f"accept_content lets a worker read {', '.join(map(shown, others))}, and whoever reaches the broker "
            "could run anything in it: leave it at ['json'], or give your tasks a Celery application of their own",
            details={"field": "accept_content"},
        )


def refuse_compressed() -> None:
    """Have this process refuse compressed messages: a few bytes of them can fill its memory.

    kombu unpacks a message before anybody can look at it, and nothing of ours is ever packed.
    """
    known: Any = compression
    for kind in known.encoders():
        encoder, content_type = known.get_encoder(kind)
        known.register(encoder, _refuse, content_type)


def _refuse(_: Any) -> Any:
    raise DecodeError("a compressed message is not read")


def _is_welcome(message: Any) -> bool:
    headers = message.headers
    if not isinstance(headers, dict):
        return True
    try:
        body = message.payload
    except (DecodeError, ContentDisallowed, LookupError):
        # Celery tells of it, and drops it
        return True
    named = headers.get("task") or (body.get("task") if isinstance(body, dict) else None)
    if named != TASK:
        return True
    kept = headers_of(headers, body)
    if kept is not None:
        message.headers = kept
    return kept is not None
