"""sd_notify(3): one datagram to NOTIFY_SOCKET, nothing where it is not set."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Tells the service manager, for example ``READY=1``.

    Never blocks and never fails the caller.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
