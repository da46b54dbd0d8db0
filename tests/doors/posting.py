"""What anybody who reaches the broker may put into it, past all of Celery's own forms."""

from __future__ import annotations

import base64
import gzip
import json
import uuid
from collections.abc import Callable
from typing import Any, Final

from celery import Celery
from hypothesis import strategies as st

from asm_celery import AgentSessions
from asm_celery.model import new_id

BUILT_IN: Final = [
    "celery.accumulate", "celery.backend_cleanup", "celery.chain", "celery.chord", "celery.chord_unlock",
    "celery.chunks", "celery.group", "celery.map", "celery.starmap",
]  # fmt: skip
BODY: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=15,
)
_KNOWN_HEADERS: Final = [
    "task", "id", "lang", "shadow", "eta", "expires", "timelimit", "group", "group_index", "root_id",
    "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "retries", "compression", "stamps",
    "stamped_headers", "replaced_task_nesting", "reply_to", "callbacks", "chord",
]  # fmt: skip
_TYPES: Final = [
    "application/json", "application/x-python-serialize", "application/x-yaml", "application/data",
    "application/x-msgpack", "text/plain", "application/json; x", "", "\n", "x/y",
]  # fmt: skip
_ENCODINGS: Final = ["utf-8", "binary", "utf-16", "latin-1", "ascii", "rot13", "idna", "", "no-such"]
_COMPRESSIONS: Final = ["application/x-gzip", "application/x-bz2", "application/x-lzma", "zlib", "no-such"]
BOMB: Final = gzip.compress(b"[" * (50 << 20))


def doorbell(*given: Any) -> list[Any]:
    """Return the body of a well-formed message with these arguments."""
    return [list(given), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


@st.composite
def messages(draw: Callable[..., Any], runs: list[str]) -> bytes:
    """Draw what is pushed onto the queue's list: a message of kombu's shape, or of none."""
    if draw(st.integers(0, 9)) == 0:
        raw: bytes = draw(
            st.binary(max_size=50) | BODY.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 5000)
        )
        return raw
    given = draw(
        st.just(doorbell(draw(st.sampled_from(runs)), draw(st.integers(-1, 3)), "s", draw(st.integers(0, 2))))
        | BODY.map(lambda value: [value, {}, {}])
        | BODY
    )
    headers = {
        "task": draw(st.sampled_from(["asm.run", "os.system", *BUILT_IN]) | BODY),
        "id": draw(st.just(str(uuid.uuid4())) | st.sampled_from(runs) | BODY),
        "lang": "py",
    }
    for name in draw(st.lists(st.sampled_from(_KNOWN_HEADERS), max_size=4)):
        headers[name] = draw(
            BODY | st.sampled_from(["1", "2999-01-01T00:00:00", [0.001, 0.001], "a\nb\x1b[2J"])
        )
    body = json.dumps(given).encode()
    if draw(st.integers(0, 9)) == 0:
        body = draw(
            st.just(body[:-1]) | st.binary(max_size=40) | st.just(b"\x80\x04cos\nsystem\n.") | st.just(BOMB)
        )
        headers["compression"] = draw(st.sampled_from(_COMPRESSIONS))
    properties: dict[str, Any] = {
        "correlation_id": headers["id"],
        "reply_to": draw(BODY),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "x"},
        "priority": draw(st.sampled_from([0, "x", None])),
        "body_encoding": draw(st.sampled_from(["base64"] * 8 + ["", "no-such"])),
        "delivery_tag": str(uuid.uuid4()),
    }
    for name in draw(st.lists(st.sampled_from(sorted(properties)), max_size=1)):
        properties[name] = draw(BODY)
    envelope: dict[str, Any] = {
        "body": base64.b64encode(body).decode(),
        "content-type": draw(st.sampled_from(["application/json"] * 8 + _TYPES)),
        "content-encoding": draw(st.sampled_from(["utf-8"] * 8 + _ENCODINGS)),
        "headers": headers if draw(st.integers(0, 9)) else draw(BODY),
        "properties": properties,
    }
    for name in draw(st.lists(st.sampled_from(sorted(envelope)), max_size=1)):
        if draw(st.booleans()):
            del envelope[name]
    return json.dumps(envelope).encode()


def forger(asm: AgentSessions) -> Celery:
    """Somebody else's Celery application, on our broker and in our namespace."""
    app = Celery("forger", broker=asm.config.celery_broker_url, set_as_current=False)
    app.conf.update(
        broker_transport_options=asm.celery_app.conf.broker_transport_options,
        task_default_queue=asm.config.default_queue,
        accept_content=["json"],
    )
    return app


# what is published past kombu on the channel of the remote commands
CRIES: Final = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"body": 1}',
    b'{"body": "e30=", "properties": {}}',
    b"\xff" * 100,
]


def broadcasts(runs: list[str]) -> list[tuple[str, Any]]:
    """Return remote commands with arguments that make no sense, and those that would do harm."""
    harmful: list[tuple[str, Any]] = [
        ("shutdown", {}),
        ("pool_restart", {"modules": ["os"], "reload": True}),
        ("pool_shrink", {"n": 100}),
        ("pool_grow", {"n": 10_000}),
        ("autoscale", {"max": 0, "min": 0}),
        ("cancel_consumer", {"queue": "asm"}),
        ("add_consumer", {"queue": "elsewhere"}),
        ("rate_limit", {"task_name": "asm.run", "rate_limit": "1/h"}),
        ("time_limit", {"task_name": "asm.run", "hard": 0.001}),
        ("election", {"id": "x", "topic": "x", "action": {}}),
        ("revoke_by_stamped_headers", {"headers": {"a": ["b"]}, "terminate": True}),
    ]
    nonsense: list[tuple[str, Any]] = [
        ("no_such_command", {}),
        ("revoke", {}),
        ("revoke", {"task_id": None}),
        ("revoke", {"task_id": {"a": 1}, "terminate": True, "signal": "SIGKILL"}),
        ("revoke", {"task_id": [[], {}, 1, "x" * 10_000], "terminate": True}),
        ("revoke", {"task_id": "../../x", "signal": "NO_SUCH"}),
        ("terminate", {"signal": 9, "task_id": [new_id("run")]}),
        ("terminate", {"signal": [], "task_id": 5}),
        ("ping", {"further": 1}),
        ("conf", {"with_defaults": {}}),
        ("query_task", {"ids": {"a": 1}}),
        ("report", {"": None}),
    ]
    return harmful + nonsense
