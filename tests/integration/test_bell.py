"""A promoting script rings for what it grants where broker and coordination are one server; else Celery does."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from asm_celery import AgentSessions
from asm_celery.bell import bell_of
from asm_celery.config import Config
from asm_celery.dispatch import CeleryDispatcher
from asm_celery.model import Lease, new_id
from asm_celery.worker.app import create_app

# what each sending makes anew, or says of the sender; and what Celery says a second time, in no header
OWN = {"origin", "delivery_tag", "reply_to", "body_encoding", "argsrepr", "kwargsrepr"}


@pytest.fixture
def server(sqlite_config: Config) -> Iterator[redis.Redis]:
    """The broker, as it is."""
    client = redis.Redis.from_url(sqlite_config.redis_url)
    yield client
    client.close()


def waiting(server: redis.Redis, config: Config, queue: str | None = None) -> list[dict[str, Any]]:
    """The messages on a Celery queue, the oldest first."""
    found: Any = server.lrange(f"{config.keys.root}celery:{queue or config.default_queue}", 0, -1)
    return [json.loads(message) for message in reversed(found)]


def web_process(config: Config) -> tuple[AgentSessions, Callable[[], None]]:
    """A web process, and what a worker says of itself."""
    asm = AgentSessions(config)
    runtime = asm._runtime()
    return asm, lambda: runtime.recovery.announce("executor", "worker", 2, [config.default_queue])


def read(message: dict[str, Any]) -> list[Any]:
    """What a message says to who hears it, however its body is encoded."""
    properties, headers = message["properties"], message["headers"]
    body = message["body"]
    if properties["body_encoding"] == "base64":
        body = base64.b64decode(body).decode()
    said = {name: value for name, value in properties.items() if name not in OWN}
    own = headers.pop("origin")
    assert own
    return [json.loads(body), said, headers, message["content-type"], message["content-encoding"]]


def test_the_script_that_grants_a_lease_has_rung_for_it(sqlite_config: Config, server: redis.Redis) -> None:
    """Between the grant and its doorbell nobody can die."""
    asm, announce = web_process(sqlite_config)
    announce()

    run_id = asm.start_session("agent").submit_run({"secret": "of the user"})

    (message,) = waiting(server, sqlite_config)
    assert run_id == message["headers"]["id"]
    assert "of the user" not in json.dumps(message)
    assert len(json.dumps(message, separators=(",", ":"))) < 1024
    asm.close()


def test_what_a_script_pushes_is_what_celery_would_have_sent(
    sqlite_config: Config, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every header, property and argument."""
    asm, announce = web_process(sqlite_config)
    announce()
    session = asm.start_session("agent", session_id="chat-1")
    run_id = session.submit_run("x")
    (pushed,) = waiting(server, sqlite_config)
    server.delete(f"{sqlite_config.keys.root}celery:{sqlite_config.default_queue}")
    lease = Lease(
        run_id=run_id, session_id="chat-1", agent="agent", claim=1, queue=sqlite_config.default_queue
    )

    CeleryDispatcher(lambda: asm.celery_app).dispatch([lease])

    (sent,) = waiting(server, sqlite_config)
    assert read(sent) == read(pushed)
    asm.close()


def test_a_doorbell_is_rung_again_by_the_script_that_finds_it_unanswered(
    sqlite_config: Config, server: redis.Redis
) -> None:
    """Under the same task id, and with a tag of its own, by which the broker tells two messages apart."""
    config = sqlite_config.model_copy(update={"ring_s": 0.05})
    asm, announce = web_process(config)
    announce()
    asm.start_session("agent").submit_run("x")

    while len(waiting(server, config)) < 2:
        asm._runtime().promoter.queue.ring()

    first, again = waiting(server, config)[:2]
    assert first["headers"]["id"] == again["headers"]["id"]
    assert first["properties"]["delivery_tag"] != again["properties"]["delivery_tag"]
    asm.close()


def test_a_broken_list_of_the_broker_does_not_break_off_a_grant(
    sqlite_config: Config, server: redis.Redis
) -> None:
    """The lease is there and is rung for again; the submit was accepted."""
    asm, announce = web_process(sqlite_config)
    announce()
    server.set(f"{sqlite_config.keys.root}celery:{sqlite_config.default_queue}", "no list")

    run_id = asm.start_session("agent").submit_run("x")

    assert b"dispatched" == server.hget(f"{sqlite_config.keys.root}run:{run_id}", "state")
    asm.close()


def test_every_process_has_the_same_scripts(sqlite_config: Config) -> None:
    """The server keeps each script it was ever sent, so a process must not bring its own."""
    bells = {bell_of(create_app(sqlite_config, lambda: None), sqlite_config) for _ in range(3)}  # type: ignore[arg-type, return-value]

    assert 1 == len(bells)
    assert None not in bells


def own_broker(app: Celery, config: Config) -> Config:
    """A broker that is not the coordination server."""
    return config.model_copy(update={"broker_url": "amqp://127.0.0.1//"})


def changed(**settings: Any) -> Callable[[Celery, Config], Config]:
    """The application with other settings; `options` are its transport's."""

    def change(app: Celery, config: Config) -> Config:
        options = settings.pop("options", {})
        app.conf.update(settings)
        app.conf.broker_transport_options = {**app.conf.broker_transport_options, **options}
        return config

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (own_broker, "another server"),
        (changed(broker_url="redis://127.0.0.1:1/1"), "its own broker"),
        (changed(options={"sep": ":"}), "its own sep"),
        (changed(options={"priority_steps": [0, 1]}), "its own priority_steps"),
        (changed(options={"body_encoding": "utf-8"}), "its bodies are encoded"),
        (changed(task_default_priority=3), "have a priority"),
        (changed(task_compression="gzip"), "compressed"),
        (changed(task_protocol=1), "protocol"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scripts_do_not_ring_where_the_broker_is_not_as_they_know_it(
    sqlite_config: Config,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Celery, Config], Config],
    reason: str,
) -> None:
    """Celery sends instead, and one line says why."""
    app = create_app(sqlite_config, lambda: None)  # type: ignore[arg-type, return-value]
    config = change(app, sqlite_config)

    with caplog.at_level(logging.INFO, logger="asm_celery.bell"):
        assert None is bell_of(app, config)

    assert reason in caplog.text


def test_an_application_of_the_users_sends_its_own_messages(sqlite_config: Config) -> None:
    """Its routers, signals and tracers see every task."""
    app = Celery(f"theirs-{new_id('run')}", broker=sqlite_config.celery_broker_url, set_as_current=False)
    asm = AgentSessions(sqlite_config, celery_app=app)

    assert None is asm._runtime().dispatcher.bell
    asm.close()
