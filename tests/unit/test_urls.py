"""URLs of servers: what is refused, and that no password is ever shown."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from asm_celery import Config
from asm_celery.errors import ValidationError
from asm_celery.showing import mask, one_line, shown

CANARY = "s3cr3t"


@pytest.fixture(autouse=True)
def nobody_else_knows_a_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own PGPASSWORD and ~/.pgpass are no part of these tests."""
    for name in ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSSLCERT", "PGHOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    "unguarded",
    [
        {"redis_url": "redis://redis:6379/0"},
        {"redis_url": "rediss://10.0.0.7/0"},
        {"redis_url": "redis://someone@10.0.0.7/0"},
        {"redis_url": "redis://[2001:db8::1]:6379/0"},
        {"redis_url": "redis://127.0.0.1.example.org/0"},
        {"redis_url": "redis://0.0.0.0/0"},
        {"broker_url": "amqp://rabbit//"},
        {"broker_url": "sentinel://:x@10.0.0.7:26379;sentinel://10.0.0.8:26379"},
        {"database_url": "postgresql://asm@db/asm"},
        {"database_url": "postgresql+psycopg:///asm?host=10.0.0.7:5432"},
        {"database_url": "postgresql+psycopg:///asm?host=/tmp&host=db"},
    ],
)
def test_a_server_elsewhere_without_a_password_is_refused(
    unguarded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do; unless the settings say that it is meant so."""
    with pytest.raises(ValidationError, match="ASM_ALLOW_INSECURE") as refused:
        Config(**unguarded)

    assert next(iter(unguarded)) in refused.value.message
    monkeypatch.setenv("ASM_ALLOW_INSECURE", "true")
    assert Config(**unguarded).allow_insecure


@pytest.mark.parametrize(
    "guarded",
    [
        {"redis_url": "redis://localhost"},
        {"redis_url": "redis://127.0.0.9:6379/0"},
        {"redis_url": "redis://[::1]:6379/0"},
        {"redis_url": "unix:///run/redis.sock?db=1"},
        {"redis_url": "redis://:x@redis/0"},
        {"redis_url": "redis://redis/0?password=x"},
        {"redis_url": "rediss://redis/0?ssl_certfile=me.pem"},
        {"broker_url": "memory://"},
        {"broker_url": "sqs://"},
        {"broker_url": "amqp://asm:x@rabbit//"},
        {"database_url": "sqlite:///x.db"},
        {"database_url": "postgresql://asm@/asm?host=/tmp"},
        {"database_url": "postgresql://asm@localhost,127.0.0.1/asm"},
        {"database_url": "postgresql://asm:x@db/asm"},
        {"database_url": "postgresql://asm@db/asm?sslcert=me.pem"},
    ],
)
def test_a_server_here_or_with_a_password_is_used(guarded: dict[str, Any]) -> None:
    """The loopback, sockets, passwords, certificates, and brokers that know their callers otherwise."""
    assert Config(**guarded)


@pytest.mark.parametrize(
    ("ours", "kombus"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://h:6379/0?password=x%2Fy", "redis://:x%2Fy@h:6379/0"),
        ("redis://h?username=u&password=p%40&db=3", "redis://u:p%40@h/3"),
        ("redis://u:p@h/1?db=2&password=other", "redis://u:p@h/2"),
        ("rediss://h/0?password=x&ssl_certfile=me.pem", "rediss://:x@h/0?ssl_certfile=me.pem"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://u:p%2F@/run/redis.sock?db=4", "redis+socket://u:p%2F@/run/redis.sock?virtual_host=4"),
        ("unix:///run/redis.sock?password=x", "redis+socket://:x@/run/redis.sock?virtual_host=0"),
        ("amqp://u:p@h1//;amqp://u:p@h2//", "amqp://u:p@h1//;amqp://u:p@h2//"),
    ],
)
def test_a_broker_is_written_as_kombu_reads_it(ours: str, kombus: str) -> None:
    """The words of redis-py for user, password and database are no words of kombu, which fails at them."""
    config = Config(broker_url=ours, allow_insecure=True)

    assert kombus == config.celery_broker_url
    # it would raise at a word it does not know
    assert Connection(kombus.partition(";")[0]).as_uri()


def test_a_password_that_libpq_finds_by_itself_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its variables and its file are where deployments keep it."""
    monkeypatch.setenv("PGPASSWORD", CANARY)
    assert Config(database_url="postgresql://asm@db/asm")
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / ".pgpass").write_text("")

    assert Config(database_url="postgresql://asm@db/asm")


URLS = [
    f"redis://:{CANARY}@host:6379/0",
    f"redis://user:{CANARY}@host/0",
    f"redis://user:p@{CANARY}/w#r?d@host/0",
    f"redis://host/0?password={CANARY}&db=1",
    f"unix://user:{CANARY}@/run/redis.sock",
    f"amqp://user:{CANARY}@h1//;amqp://user:{CANARY}@h2//",
    f"postgresql://user:{CANARY}@host/name?sslpassword={CANARY}",
]


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_never_shown(url: str) -> None:
    """Not in a masked URL, and not in a setting's repr, its text, its error or the traceback of that."""
    assert CANARY not in mask(url)
    name = "database_url" if url.startswith("postgresql") else "broker_url"
    for values in (
        {name: url},
        {name: url, "redis_url": "redis://elsewhere"},
        {name: f"{url.partition(':')[0]}://:{CANARY}"},
    ):
        try:
            config = Config(**values)
        except ValidationError as refused:
            told = "".join(traceback.format_exception(refused)) + repr(refused.to_map())
        else:
            told = f"{config!r} {config} {config.masked()}"
        assert CANARY not in told, values


def test_what_is_shown_is_one_printable_line() -> None:
    """Whatever it is, and however large; and showing it never raises."""

    class Unspeakable:
        def __repr__(self) -> str:
            raise RuntimeError

    ring: list[Any] = []
    ring.append(ring)
    for value in ("a\nb\x1b[2J\u202e\ud800", "x" * 10**7, 10**5000, [10**5000], Unspeakable(), ring, b"\n"):
        told = shown(value)
        assert told.isprintable()
        assert len(told) <= 400
    assert r"a\nb\x1b[2J\u2066\ud800" == one_line("a\nb\x1b[2J\u2066\ud800")
