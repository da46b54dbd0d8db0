"""asm_celery as one peer of a comparison with other queues, by its public face.

It is a peer file of a harness that is not part of this repository, which runs each peer in its own environment
on the same work: copied beside the others, it finds their module ``common`` there.  A session a key, runs of one
session strictly in order.  Variants: ``sqlite-threads``, ``postgresql-prefork`` and so on.  All settings are
defaults, but for the two limits, which would make work wait.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from asm_celery import AgentSessions, SessionServer
from asm_celery.worker.context import RunContext

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
common: Any = importlib.import_module("common")

PACKAGES: Final = ["asm-celery", "celery", "kombu", "redis", "hiredis", "sqlalchemy", "psycopg"]
DATABASE, _, POOL = common.CFG["variant"].partition("-")
RECORDS: Final = Path(common.CFG["rec"])
# beside the records, of which every file is counted
FOLDER: Final = RECORDS.parent / f"asm-{RECORDS.name}"

os.environ.update(
    ASM_REDIS_URL=f"{common.CFG['redis']}/0",
    ASM_DATABASE_URL=(
        common.CFG["pg"].replace("postgresql://", "postgresql+psycopg://", 1)
        if DATABASE == "postgresql"
        else f"sqlite:///{FOLDER}/asm.db"
    ),
    # the slots of the worker are what bounds the work
    ASM_MAX_PARALLEL_RUNS="1000",
    ASM_MAX_PARALLEL_SESSIONS="1000",
)
asm = AgentSessions.from_env()
sessions: dict[int, SessionServer] = {}


@asm.agent
def noop(ctx: RunContext, given: list[int]) -> None:
    """Do nothing, and record it."""
    common.run_noop(*given)


@asm.agent
def emit(ctx: RunContext, given: dict[str, Any]) -> None:
    """Say events, each with its time."""
    for number in range(given["n"]):
        ctx.emit("progress", {"i": number, "t": common.clock()})
        if given["gap"]:
            time.sleep(given["gap"])


def client_open() -> None:
    """Prepare the database and connect; before the worker starts."""
    FOLDER.mkdir()
    subprocess.run([Path(sys.executable).with_name("asm"), "migrate"], check=True, stdout=sys.stderr)
    asm.list_sessions(limit=1)


def prepare(base: int, count: int) -> None:
    """Start the sessions of a phase."""
    for key in range(base, base + count):
        _session(key)


def submit(key: int, number: int, lasts_ms: int) -> None:
    """Submit a run."""
    _session(key).submit_run([key, number, lasts_ms])


def stream(count: int, gap_s: float) -> dict[str, Any]:
    """Follow a run that talks; return how late each event came, and how long all of them took."""
    late: list[float] = []
    first = last = 0.0
    server = asm.start_session("emit")
    with server.subscribe(type="progress") as events:
        server.submit_run({"n": count, "gap": gap_s})
        while len(late) < count and (event := events.get(timeout=20)) is not None:
            last = common.clock()
            first = first or last
            late.append(last - event.data["t"])
    return {"lat": late, "secs": last - first}


def client_close() -> None:
    """Disconnect."""
    asm.close()


def worker() -> None:
    """Execute runs until ended."""
    slots = str(common.CFG["slots"])
    asm.celery_app.worker_main(
        ["worker", "-P", POOL, "-c", slots, "-l", "ERROR", "--without-gossip", "--without-mingle"]
    )


def _session(key: int) -> SessionServer:
    if key not in sessions:
        sessions[key] = asm.start_session("noop", max_queued_runs=100_000)
    return sessions[key]


if __name__ == "__main__":
    common.main(globals())
