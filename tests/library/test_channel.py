"""Channel: lines over a stream, each bounded in bytes and in time."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pyztun import Channel, OwnedFd, PeerClosed, ProtocolError, SyscallError, native


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with right, Channel(OwnedFd(left.detach()), "/run/peer") as channel:
        yield channel, right


def test_several_lines_in_one_message(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.send(b"one\ntwo\nthr")
    assert channel.receive_line(100, 5) == b"one\n"
    assert channel.receive_line(100, 5) == b"two\n"
    peer.send(b"ee\n")
    assert channel.receive_line(100, 5) == b"three\n"


def test_closing_before_the_end_of_a_line(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.send(b"half")
    peer.close()
    with pytest.raises(PeerClosed, match=r"^/run/peer: closed before it answered$"):
        channel.receive_line(100, 5)


def test_a_reset_is_an_end(ends: tuple[Channel, socket.socket]) -> None:
    """A peer that closes with our request unread resets the connection: it has left anyway."""
    channel, peer = ends
    channel.send(b"unread")
    peer.close()
    with pytest.raises(PeerClosed):
        channel.receive_line(100, 5)


def test_an_answer_before_a_reset_is_read(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    channel.send(b"unread")
    peer.send(b"answer\n")
    peer.close()
    assert channel.receive_line(100, 5) == b"answer\n"


@pytest.mark.parametrize("text", [b"x" * 101, b"x" * 5000, b"x" * 101 + b"\n", b"x" * 4000 + b"\n"])
def test_a_line_beyond_the_limit(ends: tuple[Channel, socket.socket], text: bytes) -> None:
    channel, peer = ends
    peer.send(text)
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        channel.receive_line(100, 5)


def test_a_line_of_just_the_limit(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.send(b"x" * 99 + b"\n")
    assert channel.receive_line(100, 5) == b"x" * 99 + b"\n"


def test_a_byte_now_and_then_does_not_prolong_the_wait(
    ends: tuple[Channel, socket.socket],
) -> None:
    channel, peer = ends
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.05):
            peer.send(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    try:
        with pytest.raises(SyscallError, match="ETIMEDOUT"):
            channel.receive_line(10000, 0.4)
        assert 0.4 <= time.monotonic() - began < 2
    finally:
        over.set()
        dripping.join()


def test_descriptors_where_none_belong_are_closed(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    read, write = os.pipe()
    socket.send_fds(peer, [b"answer\n"], [write])
    os.close(write)
    with pytest.raises(SyscallError, match="EPROTO"):
        channel.receive_line(100, 5)
    assert os.read(read, 1) == b"", "the write end is still open somewhere"
    os.close(read)


def test_connect_send_and_receive_with_descriptors(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sock_path)
        listener.listen()
        with Channel.connect(sock_path, native.SEQPACKET, 5) as channel:
            peer, _ = listener.accept()
            with peer:
                channel.send(b"take", [0], 5)
                data, fds, _, _ = socket.recv_fds(peer, 10, 2)
                assert (data, len(fds)) == (b"take", 1)
                socket.send_fds(peer, [b"back"], fds)
                os.close(fds[0])
                answer, back = channel.receive(10, 1, 5)
                assert answer == b"back"
                assert os.path.samestat(os.fstat(back[0].fileno()), os.fstat(0))
                back[0].close()
    assert channel.fileno() == -1
