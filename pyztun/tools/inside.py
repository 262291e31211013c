"""What a process in a pod sees: started there by nsenter(1), it looks around, prints, and ends.

``nsenter --net=NETNS python -IS inside.py PORT...`` prints one JSON object: the netns in which it
is, /proc/self/net/tcp, and what each port on 127.0.0.1 answered. It imports nothing of pyztun:
-IS leaves out the user's paths and the site packages, for which it would have to wait.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from time import monotonic

PATIENCE = 2.0  # seconds for all connections together


def ask(port: int, until: float) -> str:
    """All that 127.0.0.1:PORT says until it closes, or ``refused``, or why it failed."""
    try:
        left = max(0.1, until - monotonic())
        with socket.create_connection(("127.0.0.1", port), left) as connection:
            said = b"".join(iter(lambda: connection.recv(4096), b""))
            return said.decode(errors="replace")
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return f"failed: {error}"


def main(ports: list[int]) -> None:
    """Prints what is seen from here."""
    until = monotonic() + PATIENCE
    with open("/proc/self/net/tcp") as table:
        listed = table.read()
    seen = {
        "inode": os.stat("/proc/self/ns/net").st_ino,
        "tcp": listed,
        "answers": {port: ask(port, until) for port in ports},
    }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
