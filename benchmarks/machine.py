"""What a process and all below it use of the machine."""

from __future__ import annotations

import contextlib

import psutil


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process and its children have used, those that have ended included."""
    used = 0.0
    for one in _tree(pid):
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            used += times.user + times.system + times.children_user + times.children_system
    return used


def memory_mb(pid: int) -> float:
    """Return the memory of a process and its children in MiB; what they share counts once."""
    held = 0
    for one in _tree(pid):
        with contextlib.suppress(psutil.Error):
            held += one.memory_full_info().pss
    return held / (1 << 20)


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
