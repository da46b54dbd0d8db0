"""The Celery application: our own, or our task and steps on an existing one.

One task, ``asm.run``.  Its message is a doorbell: ids and a claim number, no user's text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from celery import Celery

from asm_celery.config import Config
from asm_celery.dispatch import TASK
from asm_celery.queue.connection import KEEPALIVE
from asm_celery.runtime import Runtime
from asm_celery.worker import consumer, remote
from asm_celery.worker.doorbell import heard
from asm_celery.worker.host import ExecutorHost
from asm_celery.worker.request import RunRequest
from asm_celery.worker.signals import WorkerLife

_REDIS_SCHEMES: Final = ("redis://", "rediss://", "redis+socket://", "sentinel://", "valkey")


def create_app(config: Config, runtime_of: Callable[[], Runtime], name: str = "asm") -> Celery:
    """Return an application that consumes the queues of the agents registered here.

    It is set up for doorbells: early acknowledgement, no prefetch, no results, JSON only.  It connects
    and reads the registry when a worker starts or a message is sent, not before.
    """
    app = Celery(name, broker=config.celery_broker_url, set_as_current=False)
    app.conf.update(_settings(config))
    app.on_after_finalize.connect(_forget_built_in)
    _register(app, runtime_of, is_ours=True)
    return app


def _forget_built_in(sender: Celery, **_: Any) -> None:
    # map, starmap, chunks, chord and the others would call what a message names, and we need none
    for name in [name for name in sender.tasks if name.startswith("celery.")]:
        sender.tasks.unregister(name)


def install(app: Celery, runtime_of: Callable[[], Runtime]) -> None:
    """Register ``asm.run`` and our steps on an existing application; its settings stay as they are.

    Its workers must consume the queues of our agents: by ``-Q`` or its own ``task_queues``.
    """
    _register(app, runtime_of, is_ours=False)


def _register(app: Celery, runtime_of: Callable[[], Runtime], *, is_ours: bool) -> None:
    remote.install()
    host = ExecutorHost(runtime_of)

    # the requests of this task ask its life where runs execute
    options: dict[str, Any] = {
        "Request": RunRequest,
        "life": WorkerLife(app, host, runtime_of, is_ours=is_ours),
    }

    # not shared: every application of the process would run it, on this host
    @app.task(name=TASK, shared=False, ignore_result=True, acks_late=False, max_retries=0, **options)
    def run(*given: Any, **named: Any) -> str | None:
        bell = heard(given, named)
        return None if bell is None else host.execute(*bell)


def _settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "task_default_queue": config.default_queue,
        "task_create_missing_queues": True,
        # no results: SQL has them; a result backend costs 1 ms a run and tells untruths about stops
        "result_backend": "disabled://",
        "task_ignore_result": True,
        # a doorbell is spent when it is heard: leases decide what is run again, not redelivery
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "worker_consumer": consumer.NAME,
        "worker_prefetch_multiplier": 1,
        "worker_disable_rate_limits": True,
        # a run outlives a hiccup of the broker
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # a Redis that is full, or read-only after a failover, refuses a command: that must not end every worker
        "broker_channel_error_retry": True,
        # whoever rings tries again itself, and must not hang meanwhile
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.2},
        # a child that imports slowly must not be killed for it, again and again
        "worker_proc_alive_timeout": 30,
        "worker_hijack_root_logger": False,
    }
    if config.celery_broker_url.startswith(_REDIS_SCHEMES):
        settings["broker_transport_options"] = {
            # A doorbell is off the list when it is fetched, and no copy of it is kept: two of three round trips
            # less.  What a killed worker had fetched and not begun, the repair loop rings for again.
            "ack_emulation": False,
            # the default of these is to wait for ever
            "socket_timeout": 5,
            "socket_connect_timeout": config.connect_timeout_s,
            "socket_keepalive": True,
            "socket_keepalive_options": KEEPALIVE,
            "health_check_interval": 5,
            "client_name": f"asm_celery-{config.namespace}",
            # two namespaces on one server never hear each other's doorbells or stop each other's tasks
            "global_keyprefix": f"{config.keys.root}celery:",
        }
    return settings
