"""What a test starts in place of a program that `tests.nursery` forks: it has its output, its signals, its end.

Run by path, ``python -I -S stand_in.py SOCKET MODULE ARGUMENTS...``, it imports next to nothing.  It hands its
standard files to the program, tells it what signals it gets, and ends with its status; when it is killed, the
nursery kills the program.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main() -> int:
    """Have the program started; return its status when it has ended."""
    place, module, *arguments = sys.argv[1:]
    nursery = socket.socket(socket.AF_UNIX)
    nursery.connect(place)
    ignores_sigint = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    order = {
        "module": module,
        "arguments": arguments,
        "env": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib would be the dearest import here
        "ignores_sigint": ignores_sigint,
    }
    text = json.dumps(order).encode() + b"\n"
    sent = socket.send_fds(nursery, [text], [0, 1, 2])
    nursery.sendall(text[sent:])
    for told in (signal.SIGTERM, signal.SIGHUP, *([] if ignores_sigint else [signal.SIGINT])):
        signal.signal(told, lambda number, _: nursery.send(bytes([number])))
    # who reads them sees their end when the program has closed its own
    for file in (0, 1, 2):
        os.close(file)
    status = int(nursery.recv(16) or b"-9")
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    os._exit(main())
