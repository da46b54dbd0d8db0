"""Find out that a pooled connection to a server is dead before it is used, without asking the server each time.

A connection that was cut, by a restart or on the way, has something to be read: the server's last word, or
the end.  So one that was used a moment ago and is silent is taken as it is; any other is asked.  What dies
without a word in between fails in its first statement, before COMMIT, and is met by a retry.
"""

from __future__ import annotations

import select
import time
from typing import Any, Final

from sqlalchemy import Engine, event, exc

# A path that forgets connections (a firewall, a balancer) does so after minutes.
_IDLE_S: Final = 5.0
_USED: Final = "asm_used"


def ping_when_in_doubt(engine: Engine) -> None:
    """Have the pool of this engine replace its dead connections before anybody gets one."""

    def note(_connection: Any, record: Any) -> None:
        record.info[_USED] = time.monotonic()

    def check(connection: Any, record: Any, _proxy: Any) -> None:
        used = record.info.get(_USED)
        if used is None or (time.monotonic() - used < _IDLE_S and _is_silent(connection)):
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as cause:
            # the others were cut by the same restart
            raise exc.InvalidatePoolError from cause

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", check)


def _is_silent(connection: Any) -> bool:
    if connection.closed:
        return False
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return not poller.poll(0)
