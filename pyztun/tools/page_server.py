"""A web server in a pod: started there by nsenter(1), it serves one page and notes who connects.

``nsenter --net=NETNS python -IS page_server.py PORT NOTES`` listens on all addresses, gives whoever
asks the same random page, and appends ``ADDRESS PORT`` of each connection to the file NOTES before
it reads from it. It imports nothing of pyztun, as inside.py does not, and says READY=1 to
NOTIFY_SOCKET.
"""

from __future__ import annotations

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

SIZE = 65536
PAGE = os.urandom(SIZE)
MAPPED = "::ffff:"


class Handler(BaseHTTPRequestHandler):
    """One connection, one request: HTTP/1.0."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """What there is to note was noted."""


class Server(ThreadingTCPServer):
    """Not http.server's own, which asks the DNS for its name."""

    daemon_threads = True
    address_family = (
        socket.AF_INET6 if os.path.exists("/proc/self/net/if_inet6") else socket.AF_INET
    )

    def __init__(self, port: int, notes: TextIO) -> None:
        self._notes = notes
        super().__init__(("", port), Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection, and notes it first of all."""
        accepted, client = super().get_request()
        address, port = client[:2]
        self._notes.write(f"{address.removeprefix(MAPPED)} {port}\n")
        return accepted, client

    def handle_error(self, *_: object) -> None:
        """A client that was reset is part of the demo."""


def main(port: str, path: str) -> None:
    """Serves until it is killed."""
    with (
        open(path, "a", buffering=1) as notes,
        Server(int(port), notes) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
