"""Make the doorbell that scripts push themselves: a message of kombu's own, with places for a lease's words.

It is Celery's and kombu's work as in any other sending; only the connection is one in memory.  What they do
for one lease is true for all, because a doorbell has ids and a claim number in it and nothing else.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final
from uuid import uuid4

from celery import Celery
from kombu import Connection, Producer
from kombu.transport import redis as transport

from asm_celery.config import Config
from asm_celery.dispatch import TASK, message_of
from asm_celery.model import Bell, Lease

log = logging.getLogger(__name__)

# stands for the claim, which is a number in the message; no other number in it has sixteen digits
_CLAIM: Final = 9_007_199_254_740_881
_LEASE: Final = Lease(run_id="@run@", session_id="@session@", agent="@agent@", claim=_CLAIM, queue="@queue@")


def bell_of(app: Celery, config: Config) -> Bell | None:
    """Return what the scripts push for a lease; None, and a line in the log, where sending is Celery's.

    A script can push where broker and coordination are one server and the broker's lists are those of
    kombu's Redis transport, with names and places that are known here.
    """
    reason = _why_not(app, config)
    if reason is not None:
        log.info("doorbells are sent by Celery, a round trip each: %s", reason)
        return None
    options = app.conf.broker_transport_options
    return Bell(list_prefix=options.get("global_keyprefix", ""), message=_message(app))


def _why_not(app: Celery, config: Config) -> str | None:
    conf, options = app.conf, app.conf.broker_transport_options
    with app.connection_for_write() as connection:
        carrier = connection.transport_cls
        others = connection.alt
    known = transport.Channel
    checks = [
        (config.broker_url not in (None, config.redis_url), "the broker is another server"),
        (
            conf.broker_url != config.celery_broker_url or len(others) > 1,
            "the application has its own broker",
        ),
        (carrier not in ("redis", "rediss", transport.Transport), f"the transport is {carrier}"),
        (options.get("sep", known.sep) != known.sep, "the transport has its own sep"),
        (
            list(options.get("priority_steps", known.priority_steps)) != list(known.priority_steps),
            "the transport has its own priority_steps",
        ),
        (options.get("body_encoding", known.body_encoding) != known.body_encoding, "its bodies are encoded"),
        (bool(conf.task_default_priority), "tasks have a priority"),
        (bool(conf.task_compression), "tasks are compressed"),
        (conf.task_protocol != 2, "the task protocol is not 2"),
    ]
    return next((reason for is_so, reason in checks if is_so), None)


def _message(app: Celery) -> str:
    queue = f"asm-{uuid4().hex}"
    sending: dict[str, Any] = message_of(_LEASE) | {"task_id": "@task@"}
    # the same words in every process: a script that differs is another script, and the server keeps each
    made = app.amqp.as_task_v2(name=TASK, origin="asm_celery", **sending)
    # utf-8 says that the body is plain text, into which a script can write
    with Connection("memory://", transport_options={"body_encoding": "utf-8"}) as memory:
        channel: Any = memory.channel()
        channel.queue_declare(queue)
        Producer(channel).publish(
            made.body,
            routing_key=queue,
            serializer=sending["serializer"],
            headers=made.headers,
            **made.properties,
        )
        sent = channel.basic_get(queue, no_ack=True).serializable()
        channel.queue_delete(queue)
    sent["body"] = sent["body"].decode()
    sent["properties"]["delivery_tag"] = "@tag@"
    sent["properties"]["delivery_info"]["routing_key"] = "@queue@"
    return json.dumps(sent, separators=(",", ":")).replace(str(_CLAIM), "@claim@")
