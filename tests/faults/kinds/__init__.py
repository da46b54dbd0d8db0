"""The kinds of faults, by component; importing this enters all of them into `nemesis.KINDS`."""

from __future__ import annotations

from tests.faults.kinds import broker, network, processes, redis, sql, work
from tests.faults.nemesis import KINDS

__all__ = ["KINDS", "broker", "network", "processes", "redis", "sql", "work"]
