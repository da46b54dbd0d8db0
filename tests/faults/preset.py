"""The clocks of a chaos run, and how long recovery may take with them.

Quick clocks, but such that two loaded cores can hold them.  The bounds are those that
`docs/explanation/guarantees.md` promises with the defaults, less what the quicker clocks save.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from asm_celery.config import Config

BEAT_S = 1.0
LEASE_S = 4.0
REPAIR_S = 1.0
RING_S = 2.0
GRACE_S = 2.0
LIMIT = 10
# what two busy cores may take longer before it is called too slow
SLACK = 3.0

# from the healing of a fault until a fresh run has completed and every run hit by it is decided
CHILD_S = 5.0
WORKER_S = LEASE_S + 5.0
DOORBELL_S = RING_S + 5.0
STORE_S = 10.0
# for faults that should hardly be felt
QUIET_S = 5.0
# a stopped run, whatever its agent does
STOP_S = GRACE_S + 5.0


def settings(redis_url: str, database_url: str, folder: Path) -> Config:
    """Return the settings of an installation of its own."""
    word = f"c{uuid4().hex[:10]}"
    return Config(
        redis_url=redis_url,
        database_url=database_url,
        namespace=word,
        default_queue=word,
        home=str(folder / "home"),
        beat_s=BEAT_S,
        lease_s=LEASE_S,
        repair_s=REPAIR_S,
        ring_s=RING_S,
        poll_s=0.5,
        stop_grace_s=GRACE_S,
        shutdown_grace_s=3.0,
        connect_timeout_s=2.0,
        max_parallel_runs=LIMIT,
        max_parallel_sessions=100,
        max_queued_runs=40,
        max_output_bytes=1 << 18,
        pool_size=5,
        retry_backoff_s=0.3,
    )
