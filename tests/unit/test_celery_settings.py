"""What a worker's settings let in, and what they let out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker.control import Panel

from asm_celery import AgentSessions, errors
from asm_celery.config import Config

CANARY = "canary-7f3a"
REDIS = f"redis://user:{CANARY}@127.0.0.1:1"


def application(tmp_path: Path, **settings: str) -> Celery:
    """The Celery application of an installation whose servers do not answer."""
    config = Config(**{"redis_url": f"{REDIS}/0", "database_url": f"sqlite:///{tmp_path}/asm.db", **settings})
    return AgentSessions(config).celery_app


@pytest.mark.parametrize("more", ["pickle", "yaml", "application/x-python-serialize"])
def test_a_worker_that_would_read_more_than_json_does_not_start(tmp_path: Path, more: str) -> None:
    """A setting changed by hand must not open the door that ours keep shut."""
    app = application(tmp_path)
    app.conf.accept_content = ["json", more]

    with pytest.raises(errors.ValidationError, match=more):
        app.WorkController(pool_cls="solo")


@pytest.mark.parametrize(("command", "options"), [("conf", {"with_defaults": True}), ("report", {})])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"broker_url": f"redis://:{CANARY}@127.0.0.1:2/0"},
        {"broker_url": f"amqp://asm:{CANARY}@127.0.0.1:2//"},
        {"broker_url": f"{REDIS}/0;{REDIS}/1"},
        {"database_url": f"postgresql+psycopg://asm:{CANARY}@127.0.0.1:1/asm"},
    ],
)
def test_no_password_is_in_what_a_worker_tells_of_its_settings(
    tmp_path: Path, command: str, options: dict[str, bool], settings: dict[str, str]
) -> None:
    """``celery inspect conf`` and ``report``, and what Flower shows of a worker, are these answers."""
    app = application(tmp_path, **settings)

    told = json.dumps(Panel.data[command](SimpleNamespace(app=app), **options), default=repr)

    assert "broker_url" in told
    assert CANARY not in told
