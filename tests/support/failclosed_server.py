"""A server that tells each client as whom it sees it, and remembers.

So a connection that passed around the proxy is told from one that was relayed: it has the client's
very port. Clients choose theirs below the range of which the kernel gives ports to others.
"""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import threading
from contextlib import suppress

from pyztun import NetNs

PORT = 80
FIRST, LAST = 10000, 30000
"""Ports of clients; net.ipv4.ip_local_port_range begins at 32768."""

_ports = itertools.count(FIRST)
Peer = tuple[str, int]


def next_port() -> int:
    """A port for a client, never given twice in a run of tests."""
    port = next(_ports)
    assert port < LAST
    return port


class Server:
    """One thread for both families: says who calls, then echoes.

    :ivar heard: bytes that came, by the peer's address and port.
    :ivar cut: whose connection was reset.
    """

    def __init__(self, netns: NetNs, addresses: tuple[str, ...], port: int = PORT) -> None:
        self.heard: dict[Peer, bytes] = {}
        self.cut: set[Peer] = set()
        self._connections: dict[Peer, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ)
        for address in addresses:
            (listener,) = netns.listen((address, port))
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, "listener")
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()

    def saw(self, peer: Peer) -> bool:
        """Whether this very client came, by itself."""
        return peer in self.heard

    def direct(self) -> set[int]:
        """Ports of the clients that came by themselves."""
        return {port for _, port in self.heard if FIRST <= port < LAST}

    def say(self, peer: Peer, data: bytes) -> None:
        """Says something to a client, if it is still there."""
        with suppress(OSError):
            self._connections[peer].send(data)

    def close(self) -> None:
        """Ends it, and all its connections with an RST: nothing waits in the pod."""
        os.write(self._woken, b"x")
        self._thread.join()
        os.close(self._woken)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._wake:
                    return self._end()
                if key.data == "listener":
                    self._accept(key.fileobj)  # type: ignore[arg-type]
                else:
                    self._hear(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            sock, address = listener.accept()
            peer = address[0], address[1]
            sock.setblocking(False)
            self.heard.setdefault(peer, b"")
            self._connections[peer] = sock
            self._selector.register(sock, selectors.EVENT_READ, peer)
            sock.send(f"{peer[0]} {peer[1]}\n".encode())

    def _hear(self, sock: socket.socket, peer: Peer) -> None:
        try:
            data = sock.recv(65536)
            self.heard[peer] += data
            if data:
                sock.send(data)
                return
        except OSError:
            self.cut.add(peer)
        self._selector.unregister(sock)
        sock.close()

    def _end(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.fd == self._wake:
                os.close(self._wake)
            else:
                with suppress(OSError):
                    key.fileobj.setsockopt(  # type: ignore[union-attr]
                        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                    )
                key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
