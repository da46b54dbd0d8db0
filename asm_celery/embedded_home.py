"""The embedded server's folder: who may look in, where its socket is, what is known of its server."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from asm_celery.errors import DependencyNotAvailable

# sun_path holds 107 bytes on Linux and 103 on macOS.
_LONGEST_SOCKET: Final = 100
# Anything else would need quoting, and redis-py and kombu do not agree on how a socket's URL is quoted.
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_./@:+,=-]+\Z")


def prepare_home(home: Path) -> Path:
    """Return the folder as an absolute path; a new or empty one gets mode 700 and ignores itself in git.

    A folder that holds something already is somebody's, and keeps its mode.

    Raises:
        DependencyNotAvailable: it cannot be made or written.
    """
    home = home.expanduser().resolve()
    try:
        home.mkdir(parents=True, mode=0o700, exist_ok=True)
        if not any(home.iterdir()):
            home.chmod(0o700)
            (home / ".gitignore").write_text("*\n")
    except OSError as cause:
        raise DependencyNotAvailable(
            f"the folder {str(home)!r} cannot hold the embedded server: {cause.strerror}; set ASM_HOME to "
            "one that can be written",
            details={"home": str(home)},
        ) from cause
    return home


def socket_path(home: Path) -> Path:
    """Return where the socket belongs: in the folder, or in a short private one if its path is long or odd.

    Raises:
        DependencyNotAvailable: no place is short enough, or another user made the private folder first.
    """
    usual = home / "r.sock"
    if _is_usable(usual):
        return usual
    name = f"asm-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    places = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - checked below
    for place in places:
        if place and os.access(place, os.W_OK) and _is_usable(Path(place, name, "r.sock")):
            return _private(Path(place, name)) / "r.sock"
    raise DependencyNotAvailable(
        f"no socket path of at most {_LONGEST_SOCKET} plain characters can be made for {str(home)!r}: "
        "set ASM_HOME to a shorter path"
    )


def read_state(home: Path) -> dict[str, Any] | None:
    """Return ``run_id`` and ``socket`` of the last server started here; None if nothing is known."""
    try:
        state = json.loads((home / "server.json").read_text())
        return {"run_id": str(state["run_id"]), "socket": str(state["socket"])}
    except (OSError, ValueError, KeyError, TypeError):
        # absent, or cut off by a crash: then nothing is known
        return None


def write_state(home: Path, state: dict[str, Any]) -> None:
    """Remember the server that was just started."""
    (home / "server.json").write_text(json.dumps(state))


def forget(home: Path, socket: Path) -> None:
    """Remove what a server that is gone has left, but for its data and log."""
    (home / "server.json").unlink(missing_ok=True)
    socket.unlink(missing_ok=True)
    if socket.parent != home:
        with contextlib.suppress(OSError):
            socket.parent.rmdir()


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock under which servers of this folder are started and stopped."""
    descriptor = os.open(home / "embedded.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_usable(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= _LONGEST_SOCKET and bool(_PLAIN_PATH.match(str(socket)))


def _private(folder: Path) -> Path:
    # /tmp is everybody's: a folder laid there by another user could hand us a server of his
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise DependencyNotAvailable(
            f"{str(folder)!r} is not a folder of ours with mode 700: remove it, or set ASM_HOME to a shorter "
            "path"
        )
    return folder
