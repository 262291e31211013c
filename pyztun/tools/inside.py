"""What a process in a pod sees: started there by nsenter(1), it looks around, prints, and ends.

``nsenter --net=NETNS python -IS inside.py PORT...`` prints one JSON object: the cookie of the netns
in which it is, /proc/self/net/tcp and tcp6, and what each port on 127.0.0.1 answered. It imports
nothing of pyztun: -IS leaves out the user's paths and the site packages, for which it would have to
wait.
"""

from __future__ import annotations

import json
import socket
import sys
from time import monotonic

SO_NETNS_COOKIE = 71  # Linux 5.14
PATIENCE = 2.0  # seconds for all connections together


def cookie() -> int:
    """The cookie of this process' netns, as a socket that is made here tells it."""
    with socket.socket() as here:
        return int.from_bytes(here.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def ask(port: int, until: float) -> str:
    """All that 127.0.0.1:PORT says until it closes, or ``refused``, ``reset``, or why it failed."""
    try:
        left = max(0.1, until - monotonic())
        with socket.create_connection(("127.0.0.1", port), left) as connection:
            said = b"".join(iter(lambda: connection.recv(4096), b""))
            return said.decode(errors="replace")
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:  # also by connect(), where the RST was faster
        return "reset"
    except OSError as error:
        return f"failed: {error}"


def read(table: str) -> str:
    """The text of a table of /proc; empty where the kernel has none (no IPv6)."""
    try:
        with open(table) as lines:
            return lines.read()
    except FileNotFoundError:
        return ""


def main(ports: list[int]) -> None:
    """Prints what is seen from here."""
    until = monotonic() + PATIENCE
    seen = {
        "cookie": cookie(),
        "tables": [read(f"/proc/self/net/{name}") for name in ("tcp", "tcp6")],
        "answers": {port: ask(port, until) for port in ports},
    }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
