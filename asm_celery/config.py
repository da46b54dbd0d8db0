"""The settings, each with its unit, default, range and environment variable ``ASM_<NAME>``.

One frozen object, validated once.  A value is taken from the argument, else from `override` (this
context only), else from the environment, else the default.  A wrong name is answered with the nearest
right one; an unknown ``ASM_*`` variable is logged, because other programs may own it.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic import ValidationError as PydanticError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from asm_celery.errors import ValidationError
from asm_celery.keys import Keys
from asm_celery.showing import mask, shown
from asm_celery.urls import for_kombu, unsafe_broker, unsafe_database, why_malformed

log = logging.getLogger("asm_celery")

_OVERRIDES: ContextVar[dict[str, Any] | None] = ContextVar("asm_celery_config_overrides", default=None)
# Variables of this prefix that are not settings of the library.
_OTHER_VARIABLES = ("ASM_TEST_", "ASM_EMBEDDED_", "ASM_DEV_")


class Config(BaseSettings):
    """Every setting of asm_celery.

    Raises:
        errors.ValidationError: a value is out of range, or a name is not a setting ("did you mean").
    """

    model_config = SettingsConfigDict(env_prefix="ASM_", frozen=True, extra="forbid")

    # where things are
    redis_url: str = "redis://127.0.0.1:6379/0"
    """The coordination server, Redis >= 7.0 or Valkey >= 7.2: redis://, rediss:// or unix://."""
    database_url: str = "sqlite:///asm.db"
    """sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME."""
    broker_url: str | None = None
    """Celery's broker; None: the coordination server."""
    allow_insecure: bool = False
    """Use a Redis, broker or PostgreSQL on another machine although its URL has no password."""
    namespace: str = "default"
    """One installation's prefix in Redis; two namespaces never meet."""
    home: str = ".asm"
    """The folder of the embedded server and its SQLite file."""

    # bounds (the seeds of the `settings` table; later only `set_limits` changes them)
    max_parallel_runs: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Runs executing at once, over all sessions and workers."""
    max_parallel_sessions: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Sessions with work in flight at once."""
    max_queued_runs: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """Waiting runs of a session unless start_session says otherwise; 0: no waiting."""

    # time
    beat_s: Annotated[float, Field(ge=0.05, le=60)] = 3.0
    """How often a living executor raises its beat."""
    lease_s: Annotated[float, Field(ge=0.3, le=3600)] = 15.0
    """Unbroken silence of a beat after which its attempt is judged dead; at least 3 beats."""
    repair_s: Annotated[float, Field(ge=0.05, le=60)] = 2.0
    """How often each worker's repair loop looks."""
    ring_s: Annotated[float, Field(ge=0.1, le=60)] = 5.0
    """Age at which an unanswered doorbell is rung again, doubling to 60 s."""
    stop_grace_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds a stopped run has to end by itself."""
    queue_timeout_s: Annotated[float, Field(ge=0.1)] = 60.0
    """How long a run waits for a worker that knows its agent, when none does."""
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    """How long a subscriber or awaiter trusts silence before it reads SQL again."""
    connect_timeout_s: Annotated[float, Field(ge=0.1, le=60)] = 5.0
    """How long connecting to SQL, Redis or the broker may take."""
    shutdown_grace_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """How long runs may finish after a worker was told to stop."""

    # attempts
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often a failed or lost run is entered; 1: user code is entered at most once."""
    retry_backoff_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Back-off before attempt 2, doubling to 60 s, with jitter."""

    # sizes
    max_input_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 1 << 20
    """A run's input as JSON."""
    max_output_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 1 << 20
    """A run's output as JSON; a larger one fails the run."""
    max_event_bytes: Annotated[int, Field(ge=64, le=1 << 26)] = 1 << 18
    """One event's data as JSON; a larger one fails the run."""
    max_metadata_bytes: Annotated[int, Field(ge=2, le=1 << 24)] = 1 << 16
    """Metadata of a session or run as JSON."""
    event_batch_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """How long an event may wait for companions before its transaction; 0: no wait."""
    event_batch_size: Annotated[int, Field(ge=1, le=10_000)] = 64
    """How many events go into one transaction at most."""
    group_commit_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """SQLite: how long a transaction may take along what other threads want written; 0: it takes nothing."""
    subscriber_buffer: Annotated[int, Field(ge=10, le=1_000_000)] = 1000
    """Live events held for one slow subscriber before it falls back to reading SQL."""

    # workers and stores
    allow_eviction: bool = False
    """Start workers on a Redis that may evict keys: they come back from SQL, but limits may be exceeded meanwhile."""
    default_queue: str = "asm"
    """The Celery queue of agents that name none."""
    sqlite_synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """NORMAL survives a crash of the process, FULL also a loss of power."""
    pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    """SQL connections of one process."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What `asm worker` logs."""

    def __init__(self, **values: Any) -> None:
        _refuse_unknown(type(self), values)
        try:
            super().__init__(**values)
        except PydanticError as cause:
            raise _taught(cause) from None
        _report_unknown_variables(type(self))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put this context's overrides between the arguments and the environment."""
        overrides = InitSettingsSource(settings_cls, init_kwargs=dict(_OVERRIDES.get() or {}))
        return init_settings, overrides, env_settings

    @classmethod
    def from_env(cls) -> Self:
        """Read the environment; the same as ``Config()``."""
        return cls()

    @classmethod
    def default(cls, name: str) -> Any:
        """Return a setting's built-in default, whatever overrides or the environment say."""
        _refuse_unknown(cls, [name])
        return cls.model_fields[name].default

    @classmethod
    @contextmanager
    def override(cls, **values: Any) -> Iterator[None]:
        """Set values for every Config made inside the block, in this context only."""
        _refuse_unknown(cls, values)
        token = _OVERRIDES.set({**(_OVERRIDES.get() or {}), **values})
        try:
            yield
        finally:
            _OVERRIDES.reset(token)

    @property
    def keys(self) -> Keys:
        """The namespace's names in Redis."""
        return Keys(self.namespace)

    @property
    def celery_broker_url(self) -> str:
        """The broker as kombu reads it, which knows other words for the same than redis-py."""
        return for_kombu(self.broker_url or self.redis_url)

    def masked(self) -> dict[str, Any]:
        """Return all settings with passwords in URLs hidden, for logs and `asm doctor`."""
        values: dict[str, Any] = self.model_dump()
        for name in ("redis_url", "database_url", "broker_url"):
            if values[name]:
                values[name] = mask(values[name])
        return values

    def __repr_args__(self) -> Any:
        return list(self.masked().items())

    @field_validator("namespace")
    @classmethod
    def _is_a_word(cls, value: str) -> str:
        try:
            Keys(value)
        except ValidationError as cause:
            raise ValueError(cause.message) from None
        return value

    @field_validator("redis_url", "broker_url", "database_url")
    @classmethod
    def _is_readable(cls, value: str | None) -> str | None:
        problem = why_malformed(value) if value else None
        if problem:
            raise ValueError(problem)
        return value

    @field_validator("database_url")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if not value.startswith(("sqlite:///", "postgresql+psycopg://", "postgresql://")):
            raise ValueError("use sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME")
        return value.replace("postgresql://", "postgresql+psycopg://", 1)

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("use redis://HOST:PORT/DB, rediss://... or unix://PATH?db=N")
        return value

    @model_validator(mode="after")
    def _asks_for_passwords(self) -> Self:
        found = {
            "redis_url": unsafe_broker(self.redis_url),
            "broker_url": unsafe_broker(self.broker_url or ""),
            "database_url": unsafe_database(self.database_url),
        }
        for name, host in found.items():
            if host is not None and not self.allow_insecure:
                raise ValueError(
                    f"{name} (ASM_{name.upper()}) reaches {shown(host)} without a password: who reaches it too can "
                    "start, stop and read everything; give it one (redis://:PASSWORD@HOST, "
                    "postgresql://USER:PASSWORD@HOST), or set allow_insecure (ASM_ALLOW_INSECURE=true) where the "
                    "network is yours alone"
                )
        return self

    @model_validator(mode="after")
    def _lease_outlasts_beats(self) -> Self:
        if self.lease_s < 3 * self.beat_s:
            raise ValueError(
                f"lease_s={self.lease_s:g} must be at least 3 beats (beat_s={self.beat_s:g}): one late beat "
                "must not look like a death"
            )
        return self


def _refuse_unknown(kind: type[Config], names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in kind.model_fields:
            near = difflib.get_close_matches(shown(name).strip("'"), kind.model_fields, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValidationError(
                f"{shown(name)} is not a setting{hint}", details={"field": shown(name), "nearest": near}
            )


def _report_unknown_variables(kind: type[Config]) -> None:
    known = {f"ASM_{name.upper()}" for name in kind.model_fields}
    for variable in os.environ:
        if not variable.startswith("ASM_") or variable in known or variable.startswith(_OTHER_VARIABLES):
            continue
        near = difflib.get_close_matches(variable, known, n=1)
        if near:
            log.warning("%s is not a setting: did you mean %s?", variable, near[0])


def _taught(cause: PydanticError) -> ValidationError:
    lines = []
    for problem in cause.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if name:
            given = problem["input"]
            if name.endswith("url") and isinstance(given, str):
                # of one that cannot be read, nobody knows where its password stands
                given = mask(given) if why_malformed(given) is None else ...
            value = shown(given)
            lines.append(f"{name} (ASM_{name.upper()}) = {value}: {message}")
        else:
            lines.append(message)
    return ValidationError("; ".join(lines), details={"problems": lines})
