"""The scripts and commands that keep Redis whole: its restore, its comparison with SQL, its clearing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from asm_celery.queue.caller import (
    Caller,
    Entry,
    Granted,
    Line,
    flat_entries,
    flat_line,
    loose,
    named,
    text_of,
)
from asm_celery.queue.connection import check_version, evicts, reaching

log = logging.getLogger(__name__)

_PAGE: Final = 500
# All workers meet the same damage at once, and one clearing is enough for them.
_CLEARING_S: Final = 2.0
# The types of the keys below the root, as includes/keys.lua lists them; a name with a colon stands for all
# that begin so.
TYPES: Final = {
    **dict.fromkeys(("gate", "turn", "restoring", "comparing", "clearing"), "string"),
    **dict.fromkeys(("settings", "executors", "capacity", "callers:of"), "hash"),
    **dict.fromkeys(("known", "active", "queues"), "set"),
    **dict.fromkeys(
        ("leases", "dispatched", "delayed", "retired", "callers:runs", "callers:sessions"), "zset"
    ),
    **dict.fromkeys(("run:", "session:", "subscribers:"), "hash"),
    **dict.fromkeys(("held:", "load:"), "set"),
    **dict.fromkeys(("open:", "line:", "workers:"), "zset"),
}
# Celery keeps its own keys below our root.
_CELERY: Final = "celery:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """A run, or its session, of which Redis says another thing than SQL; `seen` is what it says.

    Of a stray it is the session whose slot it keeps.
    """

    run_id: str
    word: str
    seen: str


class Upkeep(Caller):
    """What repair and the doctor ask for."""

    _is_supported = False

    def check_server(self) -> None:
        """Raise DependencyNotAvailable when the server is too old, and warn when it evicts; asks it once.

        Raises:
            CoordinationUnavailable: the server cannot be reached, so nothing is known of it.
        """
        if self._is_supported:
            return
        with reaching(self._url):
            check_version(self._client)
            policy = evicts(self._client)
        self._is_supported = True
        if policy is not None:
            log.warning(
                "Redis has maxmemory-policy %s: it may drop leases and waiting runs, which come back from SQL; "
                "set maxmemory-policy noeviction",
                policy,
            )

    def begin_restore(self, restorer: str, *, hold_s: float) -> str:
        """Ask for the right to restore; returns open, mine or busy."""
        return text_of(self._call("begin_restore", restorer, round(hold_s * 1000))[0])

    def open_gate(self, restorer: str) -> Granted:
        """Open the gate after a restore, then promote; the word is open or lost."""
        return self._granted("open_gate", restorer)

    def audit(self, said: Iterable[tuple[Line, Entry]]) -> list[Odd]:
        """Return what Redis says differently of these open runs, in pages of one round trip each."""
        found: list[Odd] = []
        rest = iter(said)
        while page := list(islice(rest, _PAGE)):
            flat = [
                part
                for line, entry in page
                for part in (
                    entry.run_id,
                    line.session_id,
                    entry.position,
                    entry.status,
                    entry.claims,
                    line.slots,
                    line.state,
                    line.version,
                )
            ]
            found += [
                Odd(run_id=text_of(run_id), word=text_of(word), seen=loose(seen))
                for run_id, word, seen in self._call("audit", *flat)
            ]
        return found

    def rewrite(self, seen: Odd, line: Line, entries: Iterable[Entry], *, whole_run: bool) -> Granted:
        """Make Redis say what SQL says of a run (or of its session only), if it still says what was seen."""
        run_id = seen.run_id if whole_run else ""
        return self._granted("rewrite", run_id, seen.seen, *flat_line(line), *flat_entries(entries))

    def sweep(self, name: str, member: str) -> Granted:
        """Take a member that nothing stands behind out of the key of this name below the root, then promote."""
        return self._granted("sweep", name, member)

    def may_compare(self, *, hold_s: float) -> bool:
        """Take the turn at comparing SQL with Redis; False: another process did within `hold_s` seconds.

        It only spares work: a comparison made twice does no harm.
        """
        return self._takes_turn("comparing", hold_s)

    def known(self) -> set[str]:
        """Return the ids of all runs Redis knows; reads in pieces, so it is not one moment's picture."""
        with reaching(self._url):
            return {loose(run_id) for run_id in self._client.sscan_iter(f"{self._root}known", count=1000)}

    def members(self, *names: str) -> dict[str, set[str]]:
        """Return the members of sets, sorted sets and hashes by their names below the root; one round trip."""
        read = {"set": "SMEMBERS", "zset": "ZRANGE", "hash": "HKEYS"}
        with reaching(self._url), self._client.pipeline(transaction=False) as pipeline:
            for name in names:
                verb = read[type_of(name) or "set"]
                tail = (0, -1) if verb == "ZRANGE" else ()
                pipeline.execute_command(verb, named(self._root + name), *tail)  # type: ignore[no-untyped-call]
            answers = pipeline.execute()
        return {name: {loose(item) for item in answer} for name, answer in zip(names, answers, strict=True)}

    def fields(self, name: str) -> dict[str, str]:
        """Return a hash by its name below the root."""
        with reaching(self._url):
            found: Any = self._client.hgetall(self._root + name)
        return {loose(field): loose(value) for field, value in found.items()}

    def names(self) -> dict[str, str]:
        """Return the type of each key of the namespace by its name below the root, without Celery's.

        The server sorts them by type, in pages; only what has none of our types is asked for one by one.
        """
        found: dict[str, str] = {}
        with reaching(self._url):
            seen = {key for page in self._pages() for key in page}
            for kind in sorted(set(TYPES.values())):
                of_kind = {key for page in self._pages(kind) for key in page}
                found |= dict.fromkeys(map(self._below, of_kind), kind)
                seen -= of_kind
            with self._client.pipeline(transaction=False) as pipeline:
                for key in seen:
                    pipeline.type(key)
                types = pipeline.execute()
        found |= {self._below(key): loose(kind) for key, kind in zip(seen, types, strict=True)}
        return {name: kind for name, kind in found.items() if kind != "none"}

    def remove(self, name: str) -> None:
        """Remove a key of the namespace that is none of ours."""
        with reaching(self._url):
            self._client.unlink(named(self._root + name))

    def clear(self) -> bool:
        """Throw away all that Redis holds of the namespace, the gate first; False: another just did.

        As after a flush nothing is promoted until the restore that must follow.
        """
        if not self._takes_turn("clearing", _CLEARING_S):
            return False
        with reaching(self._url):
            self._client.unlink(f"{self._root}gate")
            for keys in self._pages():
                self._client.unlink(*keys)
        return True

    def _takes_turn(self, name: str, hold_s: float) -> bool:
        key = self._root + name
        with reaching(self._url), self._client.pipeline(transaction=False) as pipeline:
            pipeline.set(key, 1, nx=True, px=round(hold_s * 1000))
            pipeline.pttl(key)
            is_ours, left_ms = pipeline.execute()
            if not is_ours and not 0 <= left_ms <= hold_s * 10_000:
                # ours end by themselves: somebody else's would keep the turn for ever
                self._client.unlink(key)
        return bool(is_ours)

    def _below(self, key: bytes) -> str:
        return loose(key).removeprefix(self._root)

    def _pages(self, kind: str | None = None) -> Iterator[list[bytes]]:
        kept = [f"{self._root}{name}".encode() for name in (_CELERY, "clearing")]
        # a namespace has none of the signs that mean something in a pattern
        keys = (
            key
            for key in self._client.scan_iter(match=f"{self._root}*", count=1000, _type=kind)
            if not key.startswith(tuple(kept))
        )
        while page := list(islice(keys, _PAGE)):
            yield page


def type_of(name: str) -> str | None:
    """Return the type that a key of this name below the root must have; None: none of ours."""
    return TYPES.get(name) or TYPES.get(name.partition(":")[0] + ":")
