"""`python -m asm_celery.worker.burial`: write what becomes of the runs of executors that a guard saw die.

A short program, started by the guard of a dead worker.  It reads from its standard input how to reach the
stores, and the executors' names: passwords are in nobody's command line or environment.  What it cannot do
is done by the repair loop of another worker, when their leases have run out.
"""

from __future__ import annotations

import base64
import json
import logging
import signal
import sys
from typing import Final

from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.dispatch import CeleryDispatcher
from asm_celery.errors import AsmError
from asm_celery.runtime import Runtime
from asm_celery.worker.app import create_app

log = logging.getLogger("asm_celery.worker")

# By then others have judged the silence.
_PATIENCE_S: Final = 60


def bury(settings: str, executors: list[str]) -> None:
    """Bury each executor; one that cannot be buried is left to the repair loop."""
    config = Config(**json.loads(base64.b64decode(settings)))
    # it knows no agents: nothing is executed here
    runtime = Runtime(config, AgentRegistry(), CeleryDispatcher(lambda: app))
    app = create_app(config, lambda: runtime)
    try:
        for executor in executors:
            try:
                runtime.recovery.bury(executor)
            except AsmError as cause:
                log.warning("executor=%s was not buried, its lease runs out: %s", executor, cause)
                return
    finally:
        runtime.close()


def main() -> None:
    """Bury what the standard input names."""
    # as the guard, which outlives a deploy's signals; and it ends in any case
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(_PATIENCE_S)
    settings, *executors = sys.stdin.read().split()
    logging.basicConfig(level=logging.WARNING, format="asm burial: %(message)s")
    bury(settings, executors)


if __name__ == "__main__":
    main()
