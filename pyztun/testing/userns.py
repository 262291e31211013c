"""What a process may do about network namespaces, tried for real, and a user namespace if not.

An ordinary user has all capabilities in a user namespace of its own, and over the netns that was
made with it; where a system forbids that, the answer names the setting that does.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from pyztun.netns import NetNs

# --net: a visitor to another netns needs CAP_SYS_ADMIN over its own as well, for the way home.
# --mount: what a test mounts is seen by nobody else and goes with the process.
OPTIONS = ("--user", "--map-root-user", "--net", "--mount")
BY_HAND = f"unshare {' '.join(OPTIONS)} COMMAND (docs/testing.md)"

SETTINGS = {
    "user.max_user_namespaces": "0",
    "user.max_net_namespaces": "0",
    "user.max_mnt_namespaces": "0",
    "kernel.unprivileged_userns_clone": "0",
    "kernel.apparmor_restrict_unprivileged_userns": "1",
}

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


@functools.cache
def why_no_netns() -> str | None:
    """Why this process cannot make a netns and sockets in it, or None if it can; asked once.

    Makes a netns, a listener in it, and lets go of both. Any thread may call it.
    """
    try:
        with NetNs.create() as fresh:
            for listener in fresh.listen(("127.0.0.1", 0)):
                listener.close()
    except OSError as error:
        return str(error)
    return None


@functools.cache
def why_no_userns() -> str | None:
    """Why this process cannot run a command in a user namespace that may; None if it can.

    Runs unshare(1) twice: in a fresh user namespace, as `unshare --net` inside it.
    """
    unshare = command()
    if not unshare:
        return "the command unshare (util-linux) is not installed"
    try:
        done = subprocess.run(
            [*unshare, unshare[0], "--net", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        return f"{unshare[0]}: {error.strerror}"
    if done.returncode == 0:
        return None
    said = done.stderr.strip() or f"exit status {done.returncode}"
    return f"this system forbids user namespaces: {_forbidding_settings() or said}"


def command() -> list[str]:
    """The prefix that runs a command in a fresh user namespace; empty without unshare(1)."""
    path = f"{os.environ.get('PATH', '')}:/usr/bin:/bin"
    found = shutil.which("unshare", path=path)
    return [found, *OPTIONS, "--"] if found else []


def _forbidding_settings() -> str:
    found = []
    for name, value in SETTINGS.items():
        try:
            if Path("/proc/sys", *name.split(".")).read_text().strip() == value:
                found.append(f"{name}={value}")
        except OSError:
            continue
    return " ".join(found)


def bring_loopback_up() -> None:
    """Sets `lo` of the calling thread's netns up; that of a fresh netns is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH22x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | IFF_UP))
