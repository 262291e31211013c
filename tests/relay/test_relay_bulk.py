"""Much at once: a gigabyte each way, slow readers, and what it costs."""

import mmap
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from support import relay_node
from support.relay_node import FAMILIES, Pair
from support.relay_traffic import (
    Worker,
    carries,
    fill,
    fill_all,
    is_block,
    joined,
    read_to_end,
    say_and_shut,
    several,
)

MIB = 1 << 20
PATTERN = 64 * MIB
BLOCK = random.Random(0).randbytes(MIB)
QUIET_MIB = 24
"""What ztunnel may take for itself while it carries whatever it is."""


# ---- a gigabyte ----------------------------------------------------------------------------------


@contextmanager
def pattern() -> Iterator[tuple[int, memoryview]]:
    """Random bytes in a file without a name: for sendfile(), and to compare with."""
    fd = os.memfd_create("pattern")
    os.truncate(fd, PATTERN)
    with mmap.mmap(fd, PATTERN) as mapped, memoryview(mapped) as view:
        for at in range(0, PATTERN, MIB):
            view[at : at + MIB] = os.urandom(MIB)
        yield fd, view
    os.close(fd)


def send_pattern(sock: socket.socket, fd: int, total: int) -> None:
    sent = 0
    while sent < total:
        at = sent % PATTERN
        sent += os.sendfile(sock.fileno(), fd, at, min(PATTERN - at, total - sent))
    sock.shutdown(socket.SHUT_WR)


def receive_pattern(sock: socket.socket, view: memoryview) -> int:
    """How many bytes came, each of which was compared."""
    buffer, got = bytearray(MIB), 0
    while size := sock.recv_into(buffer, MIB, socket.MSG_WAITALL):
        part = buffer if size == MIB else buffer[:size]
        assert part == view[got % PATTERN : got % PATTERN + size]
        got += size
    return got


def make_blocking(sock: socket.socket) -> None:
    """A timeout of Python's makes it a non-blocking one, with which sendfile() fails."""
    sock.setblocking(True)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 10, 0))


@pytest.mark.slow
def test_a_gigabyte_each_way(pair: Pair) -> None:
    """It is spliced, and nothing of it stays in ztunnel's memory."""
    daemon, total = pair.node.daemon, 1 << 30
    _, there = pair.addresses(0)
    with pattern() as (fd, view):
        heap = relay_node.heap_kib(daemon.pid)
        with joined(pair.client.netns, pair.server.netns, there) as (client, server):
            make_blocking(client)
            make_blocking(server)
            for one, other in ((client, server), (server, client)):
                sender = Worker(partial(send_pattern, one, fd, total))
                assert receive_pattern(other, view) == total
                sender.join()
                assert relay_node.pipes(daemon) >= 2
        assert relay_node.heap_kib(daemon.pid) - heap < QUIET_MIB * 1024


# ---- nobody reads --------------------------------------------------------------------------------

READERS = 80
"""More than there are pipes for them."""


def most_of_the_kernel() -> int:
    """Bytes that it takes at most for one direction of three connections in a row."""
    names = ("tcp_rmem", "tcp_wmem")
    return 3 * sum(int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in names)


@FAMILIES
@pytest.mark.parametrize("who", [0, 1], ids=["to-server", "to-client"])
def test_nobody_reads_for_a_while(pair: Pair, who: int, family: int) -> None:
    """The sender is stopped, ztunnel rests and stays small; then all of it comes, and the end."""
    daemon = pair.node.daemon
    _, there = pair.addresses(family)
    heap = relay_node.heap_kib(daemon.pid)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        sender, reader = both[who], both[1 - who]
        sent = fill(sender, BLOCK)
        assert MIB < sent < most_of_the_kernel()
        assert relay_node.heap_kib(daemon.pid) - heap < QUIET_MIB * 1024
        assert carries_back(reader, sender)
        sender.shutdown(socket.SHUT_WR)
        assert is_block(read_to_end(reader), BLOCK)


def carries_back(one: socket.socket, other: socket.socket) -> bool:
    """The other direction is free."""
    one.sendall(b"still here")
    return other.recv(100) == b"still here"


@pytest.mark.parametrize("who", [0, 1], ids=["to-servers", "to-clients"])
def test_many_who_do_not_read(pair: Pair, who: int) -> None:
    daemon = pair.node.daemon
    relay_node.small_buffers(pair)
    _, there = pair.addresses(0)
    heap = relay_node.heap_kib(daemon.pid)
    with several(pair.client.netns, pair.server.netns, there, READERS) as ends:
        senders, readers = [both[who] for both in ends], [both[1 - who] for both in ends]
        sent = fill_all(senders, BLOCK)
        assert all(sent.values())
        taken = relay_node.heap_kib(daemon.pid) - heap
        assert taken < (2 * READERS * 2 * 64) + 2048, "a read that was not delivered, for each"
        cpu = relay_node.cpu_seconds(daemon.pid)
        with joined(pair.client.netns, pair.server.netns, there, 81) as (client, server):
            assert all(carries(client, server) for _ in range(100)), "the others are not held up"
        assert relay_node.cpu_seconds(daemon.pid) - cpu < 0.5
        for sender, reader in zip(senders, readers, strict=True):
            sender.shutdown(socket.SHUT_WR)
            got = read_to_end(reader)
            assert len(got) == sent[sender.fileno()]
            assert is_block(got, BLOCK)


def test_both_ends_only_send(pair: Pair) -> None:
    """Neither reads before it has said all: what fits goes both ways, then each reads the rest."""
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        sent = fill_all(both, BLOCK)
        for one in both:
            one.shutdown(socket.SHUT_WR)
        for one, other in (both, both[::-1]):
            got = read_to_end(one)
            assert len(got) == sent[other.fileno()]
            assert is_block(got, BLOCK)


def test_a_slow_reader_reads_at_its_own_pace(pair: Pair) -> None:
    """A little at a time from a sender that never waits for anything."""
    relay_node.small_buffers(pair)
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as (client, server):
        sender = Worker(lambda: say_and_shut(client, BLOCK * 8))
        got = bytearray()
        while piece := server.recv(1500):
            got += piece
        sender.join()
        assert got == BLOCK * 8
