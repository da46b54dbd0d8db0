"""The links of a chaos run cut as they say, or what was measured through them means nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import Link, Mode, Network
from tests.waiting import wait_until


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """A link to a server that says everything back."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "echo"))
    server.listen()

    def answer(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(65_536):
                peer.sendall(data)

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with Network() as network:
        yield network.link(tmp_path / "echo")
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.fixture
def peer(link: Link) -> Iterator[socket.socket]:
    """A connection through the link, over which a word came back."""
    with socket.create_connection(("127.0.0.1", link.port), timeout=0.3) as connected:
        connected.sendall(b"word")
        assert b"word" == connected.recv(100)
        yield connected


def test_a_hole_says_nothing_and_what_was_sent_into_it_arrives_when_it_is_healed(
    link: Link, peer: socket.socket
) -> None:
    """As with packets that are sent again."""
    link.set(Mode.HOLE)
    peer.sendall(b"lost?")

    with pytest.raises(TimeoutError):
        peer.recv(100)
    link.set(Mode.PASS)
    assert b"lost?" == peer.recv(100)


def test_a_half_open_connection_swallows_and_is_reset_when_healed(link: Link, peer: socket.socket) -> None:
    """The far side is gone, and nobody said so."""
    link.set(Mode.HALF_OPEN)
    peer.sendall(b"lost")

    with pytest.raises(TimeoutError):
        peer.recv(100)
    link.set(Mode.PASS)
    with pytest.raises(ConnectionResetError):
        wait_until(lambda: peer.recv(100), description="a reset", timeout=2.0)


def test_refused_connections_are_reset(link: Link, peer: socket.socket) -> None:
    """Old ones and new ones."""
    link.set(Mode.REFUSE)

    with pytest.raises(ConnectionResetError):
        peer.recv(100)
    # the reset of a new one may come before it is known to be connected
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", link.port), timeout=2.0) as another,
    ):
        another.recv(100)


def test_an_answer_is_cut_after_so_many_bytes(link: Link, peer: socket.socket) -> None:
    """What is lost is the answer, not what was asked."""
    link.cut_after(10)
    peer.sendall(b"12345678")
    assert b"12345678" == peer.recv(100)
    peer.sendall(b"12345678")

    with pytest.raises(ConnectionResetError):
        peer.recv(100)
