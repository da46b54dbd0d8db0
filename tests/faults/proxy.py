"""A TCP proxy of our own, whose links can be cut in every way a network has.

All links of a stage live in one thread with one event loop.  A link listens on the loopback and carries to a
Unix socket; what it does to the bytes is its `mode`, which any thread may set.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HIGH_WATER = 1 << 20


class Mode(StrEnum):
    """What a link does."""

    PASS = "pass"
    # no byte passes and nobody is told: packets are dropped
    HOLE = "hole"
    # connections are reset, and new ones too
    REFUSE = "refuse"
    # the far side is gone and nobody is told: what is sent is swallowed
    HALF_OPEN = "half open"


class Link:
    """One way to one server.

    Attributes:
        port: where it listens.
        delay_s: how long each piece is held back.
    """

    def __init__(self, network: Network, upstream: Path) -> None:
        self._network = network
        self._upstream = upstream
        self.port = 0
        self.delay_s = 0.0
        self.mode = Mode.PASS
        self._budget: int | None = None
        self._halves: set[_Half] = set()

    async def open(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Half(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and cut every connection."""
        # asyncio loses a connection that it has accepted and not yet made when its server is closed
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        # a connection is gone when its transport has said so, in a later turn of the loop; and one that was just
        # accepted is here some turns later
        quiet = 0
        while quiet < 5:
            self._reset()
            await asyncio.sleep(0.001)
            quiet = 0 if self._halves else quiet + 1
        self._server.close()
        await self._server.wait_closed()

    def set(self, mode: Mode) -> None:
        """Change what it does to all connections, old and new."""
        self._network.do(lambda: self._set(mode))

    def reset(self) -> None:
        """Reset every connection there is, in both directions."""
        self._network.do(self._reset)

    def cut_after(self, count: int) -> None:
        """Let so many bytes of answers pass, and then reset every connection."""
        self._budget = count

    async def connect(self, half: _Half) -> None:
        """Give a new connection its other half."""
        if self.mode is Mode.HOLE or self.mode is Mode.HALF_OPEN:
            return
        if self.mode is Mode.REFUSE:
            half.abort()
            return
        loop = asyncio.get_running_loop()
        far = _Half(self, peer=half)
        try:
            await loop.create_unix_connection(lambda: far, str(self._upstream))
        except OSError:
            half.abort()
            return
        half.meet(far)

    def enter(self, half: _Half) -> None:
        """Take note of one side of a connection."""
        self._halves.add(half)
        half.hold(self.mode is Mode.HOLE)

    def leave(self, half: _Half) -> None:
        """Forget it."""
        self._halves.discard(half)

    def carry(self, to: _Half, data: bytes, *, is_answer: bool) -> None:
        """Pass a piece on, or not."""
        if is_answer and self._budget is not None:
            self._budget -= len(data)
            if self._budget < 0:
                self._budget = None
                self._reset()
                return
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, to.write, data)
        else:
            to.write(data)

    def _set(self, mode: Mode) -> None:
        before, self.mode = self.mode, mode
        if mode is Mode.REFUSE or before is Mode.HALF_OPEN:
            self._reset()
        for half in list(self._halves):
            if mode is Mode.HALF_OPEN and not half.is_near:
                half.abort()
            else:
                half.hold(mode is Mode.HOLE)
        if before is Mode.HOLE:
            # who connected into the hole was never carried on
            for half in [half for half in self._halves if half.is_near and half.peer is None]:
                half.abort()

    def _reset(self) -> None:
        for half in list(self._halves):
            half.abort()


class _Half(asyncio.Protocol):
    """One side of a carried connection."""

    def __init__(self, link: Link, peer: _Half | None = None) -> None:
        self._link = link
        self.peer = peer
        self.is_near = peer is None
        self._early = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._link.enter(self)
        if self.is_near:
            self._connecting = asyncio.get_running_loop().create_task(self._link.connect(self))

    def meet(self, far: _Half) -> None:
        """Be told of the other side; what came before it goes first."""
        self.peer = far
        if self._early:
            self._link.carry(far, self._early, is_answer=False)
            self._early = b""

    def data_received(self, data: bytes) -> None:
        if self._link.mode is Mode.HALF_OPEN:
            return
        if self.peer is None:
            self._early += data
        else:
            self._link.carry(self.peer, data, is_answer=not self.is_near)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.leave(self)
        if self.peer is not None and self._link.mode is not Mode.HALF_OPEN:
            self.peer.close()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.hold(True)

    def resume_writing(self) -> None:
        if self.peer is not None and self._link.mode is not Mode.HOLE:
            self.peer.hold(False)

    def hold(self, is_held: bool) -> None:
        """Read no more, or go on; the kernel's buffers fill, as when packets are dropped."""
        if self._transport is None or self._transport.is_closing():
            return
        if is_held and self._transport.is_reading():
            self._transport.pause_reading()
        elif not is_held and not self._transport.is_reading():
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close by a reset: no goodbye, and nothing that waits is sent."""
        if self._transport is None:
            return
        if self.is_near:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


class Network:
    """The thread in which links live; a context manager."""

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-network", daemon=True)

    def link(self, upstream: Path) -> Link:
        """Make a link to a server's Unix socket."""
        link = Link(self, upstream)
        asyncio.run_coroutine_threadsafe(link.open(), self._loop).result(10)
        self._links.append(link)
        return link

    def do(self, act: Callable[[], object]) -> None:
        """Do something in the thread of the links, and wait for it."""

        async def done() -> None:
            act()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links:
            asyncio.run_coroutine_threadsafe(link.close(), self._loop).result(10)
        # the goodbyes of cut connections take one more turn of the loop
        self.do(lambda: None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
