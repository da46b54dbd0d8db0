"""What the clients of a chaos run write down: JSON lines, each by one write, so that a kill tears none."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.checkers import Awaited, Stop, Submit, Transcript


class Journal:
    """One process's file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(self, kind: str, **values: Any) -> None:
        """Append a line; safe from any thread."""
        line = {"kind": kind, "at": time.monotonic(), **values}
        os.write(self._file, json.dumps(line, default=str).encode() + b"\n")


class Told:
    """All that the clients wrote, as the checkers take it.

    Attributes:
        strange: what no client should ever see: an error that is not ours, a subscriber that is stuck.
        reached: how many subscribers were seen to reach the end of what they followed.
        errors: how often clients met which typed error.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.submits: list[Submit] = []
        self.stops: list[Stop] = []
        self.awaited: list[Awaited] = []
        self.strange: list[str] = []
        self.reached = 0
        self.errors: dict[str, int] = defaultdict(int)
        self._heads: dict[str, dict[str, Any]] = {}
        self._received: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for file in files:
            for line in _lines(file):
                self._take(line)

    @property
    def transcripts(self) -> list[Transcript]:
        """What each subscriber received."""
        return [
            Transcript(
                subscriber=name,
                session_id=head["session"],
                after=head["after"],
                received=self._received[name],
                run_id=head.get("run"),
            )
            for name, head in self._heads.items()
        ]

    def _take(self, line: dict[str, Any]) -> None:
        match line["kind"]:
            case "submit":
                self.submits.append(
                    Submit(
                        session_id=line["session"],
                        called=line["called"],
                        returned=line["at"],
                        run_id=line["run"],
                        key=line.get("key"),
                    )
                )
            case "refused":
                self.errors["max_runs_exceeded"] += 1
            case "stop":
                self.stops.append(Stop(run_id=line["run"], state=line["state"], kind=line["stop"]))
            case "await":
                self.awaited.append(
                    Awaited(run_id=line["run"], status=line["status"], output=line.get("output"))
                )
            case "follow":
                self._heads[line["subscriber"]] = line
            case "seen":
                self._received[line["subscriber"]] += [(number, word) for number, word in line["events"]]
            case "reached":
                self.reached += 1
            case "error":
                self.errors[line["error"]] += 1
            case "strange":
                self.strange.append(line["text"])


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(errors="replace").splitlines():
        yield json.loads(line)
