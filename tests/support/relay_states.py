"""Connections through the relay in every state that one can be in, and what becomes of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from support.relay_node import Pair, small_buffers
from support.relay_traffic import SECONDS, dial, ends, fill, joined, listening, reset, until, words

BLOCK = bytes(range(256)) * 4096
NOBODY = "192.0.2.9"
"""An address on the wire of which the client's pod knows a link address that nobody has."""


class States:
    """Each has an open connection.

    :ivar clients: by the name of the state.
    :ivar servers: the same, where there is one.
    """

    def __init__(self) -> None:
        self.clients: dict[str, socket.socket] = {}
        self.servers: dict[str, socket.socket] = {}

    def fates(self) -> dict[str, str]:
        """How each ends for either side: reset or closed. TimeoutError if one does not."""
        found = {}
        for side, socks in (("client", self.clients), ("server", self.servers)):
            for name, sock in socks.items():
                found[f"{name} {side}"] = _end_of(sock)
        return found


def _end_of(sock: socket.socket) -> str:
    """What comes after all that was there already."""
    sock.settimeout(SECONDS)
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


@contextmanager
def every_state(pair: Pair, first_port: int = 1000) -> Iterator[States]:
    """Connecting, idle, blocked both ways, half-closed by either side, and never accepted."""
    states = States()
    here, there = pair.client.netns, pair.server.netns
    address = pair.server.ipv4
    ports = iter(range(first_port, first_port + 10))
    with ExitStack() as stack:

        def join(name: str) -> tuple[socket.socket, socket.socket]:
            both = stack.enter_context(joined(here, there, address, next(ports)))
            states.clients[name], states.servers[name] = both
            return both

        small_buffers(pair)
        words(here, f"ip neigh replace {NOBODY} lladdr 02:00:00:00:00:09 dev eth0")
        states.clients["connecting"] = stack.enter_context(dial(here, NOBODY, next(ports)))
        join("idle")
        for name, index in (("unread by the server", 0), ("unread by the client", 1)):
            fill(join(name)[index], BLOCK)
        client, server = join("half-closed by the client")
        client.shutdown(socket.SHUT_WR)
        assert ends(server) == "closed"
        del states.servers["half-closed by the client"]  # it has had its end
        client, server = join("half-closed by the server")
        server.shutdown(socket.SHUT_WR)
        assert ends(client) == "closed"
        del states.clients["half-closed by the server"]
        port = next(ports)
        stack.enter_context(listening(there, address, port))
        states.clients["not accepted"] = stack.enter_context(dial(here, address, port))
        states.clients["not accepted"].sendall(b"hello?")
        assert until(lambda: f"{address}:{port}" in words(here, "ss -Htn state connected"))
        yield states
        for sock in (*states.clients.values(), *states.servers.values()):
            reset(sock)
