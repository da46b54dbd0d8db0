"""When work was entered and left, written by whoever does it: one short line, no round trip."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "ASM_DEV_STAMPS"


@dataclass(frozen=True, slots=True)
class Stamp:
    """One piece of work; times are of the machine's monotonic clock, which all processes share."""

    key: str
    entered: float
    left: float


def stamp(key: str, entered: float | None = None) -> None:
    """Write that a piece of work of this key ends now; None: it was entered now too."""
    now = time.monotonic()
    line = f"{key} {entered or now:.6f} {time.monotonic():.6f}\n".encode()
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


class Stamps:
    """The file of one phase, as the measuring process reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Stamp]:
        """Return all stamps so far, in the order in which work was entered."""
        if not self.path.exists():
            return []
        words = [line.split() for line in self.path.read_text().splitlines()]
        found = [Stamp(key, float(entered), float(left)) for key, entered, left in words]
        return sorted(found, key=lambda one: one.entered)

    def take(self, count: int, patience_s: float = 300.0) -> list[Stamp]:
        """Wait until so many are there, return and forget them; raises TimeoutError when they do not come."""
        until = time.monotonic() + patience_s
        while not self.path.exists() or self.path.read_bytes().count(b"\n") < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self.read())} of {count} stamps after {patience_s:g} s")
            time.sleep(0.005)
        found = self.read()
        self.path.unlink()
        return found
