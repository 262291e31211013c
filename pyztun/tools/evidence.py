"""Evidence: what the kernel says about namespaces, listeners and processes, read from outside them.

Nothing here asks the programs that are shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyztun.netns import NetNs
from pyztun.tools import inside, processes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TCP_ESTABLISHED, TCP_LISTEN = "01", "0A"
MAPPED = "::ffff:"
"""Before an IPv4 address that a socket of IPv6 has."""
PATIENCE = 2.0
"""Seconds that a client waits for each packet."""


@dataclass(frozen=True)
class Listener:
    """One LISTEN line of /proc/net/tcp or tcp6.

    :ivar socket: the inode number of the socket, the same in /proc/PID/fd of who holds it.
    """

    address: str
    port: int
    socket: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Connection:
    """One ESTABLISHED line of /proc/net/tcp or tcp6: one end of a connection.

    :ivar local, remote: ``ADDRESS:PORT``; of IPv4 also where the socket is one of IPv6.
    :ivar socket: as in Listener.
    """

    local: str
    remote: str
    socket: int


@dataclass(frozen=True)
class View:
    """What a process inside a netns saw.

    :ivar cookie: of the netns in which it was.
    :ivar answers: port -> what the client was told, or ``refused``, or ``reset``.
    """

    pid: int
    cookie: int
    listeners: list[Listener]
    answers: dict[int, str]
    connections: list[Connection] = field(default_factory=list)


def look_inside(netns: str, ports: Iterable[int] = ()) -> View:
    """Starts a process in the netns (a path) that lists what listens there and tries ``ports``."""
    enter = [processes.find("nsenter"), f"--net={netns}"]
    done = processes.run([*enter, sys.executable, "-IS", inside.__file__, *map(str, ports)])
    if done.status != 0:
        raise processes.ProgramError(f"no process could look into {netns}: {done.summary()}")
    seen = json.loads(done.stdout)
    return View(
        done.pid,
        seen["cookie"],
        listeners_of(*seen["tables"]),
        {int(port): said for port, said in seen["answers"].items()},
        connections_of(*seen["tables"]),
    )


def listening_at_home() -> list[Listener]:
    """What listens in our own netns, IPv4 and IPv6."""
    tables = [Path(f"/proc/self/net/{name}") for name in ("tcp", "tcp6")]
    return listeners_of(*(table.read_text() for table in tables if table.exists()))


def listeners_of(*tables: str) -> list[Listener]:
    """The LISTEN lines of the texts of /proc/net/tcp and tcp6, in the order of their ports."""
    found = []
    for local, _, socket_inode in _lines(TCP_LISTEN, tables):
        address, port = local.rsplit(":", 1)
        found.append(Listener(address, int(port), socket_inode))
    return sorted(found, key=lambda listener: listener.port)


def connections_of(*tables: str) -> list[Connection]:
    """The ESTABLISHED lines of the texts of /proc/net/tcp and tcp6."""
    return [Connection(*each) for each in _lines(TCP_ESTABLISHED, tables)]


def _lines(state: str, tables: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """Local address, remote address and socket of each line that has that state."""
    for line in (line for table in tables for line in table.splitlines()[1:]):
        columns = line.split()
        if columns[3] == state:
            yield _endpoint(columns[1]), _endpoint(columns[2]), int(columns[9])


def _endpoint(text: str) -> str:
    address, port = text.split(":")
    return f"{_address(address)}:{int(port, 16)}"


def _address(digits: str) -> str:
    """Reads the kernel's hexadecimal, which is 32-bit words in the byte order of the machine."""
    words = [
        int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)
    ]
    if len(words) == 1:
        return socket.inet_ntop(socket.AF_INET, words[0])
    text = socket.inet_ntop(socket.AF_INET6, b"".join(words))
    return text.removeprefix(MAPPED) if text.startswith(MAPPED) else f"[{text}]"


def processes_in(netns_inode: int) -> list[int]:
    """The processes in a netns; of others' processes, those whose netns we may read."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino == netns_inode:
                found.append(int(pid))
    return found


def cookie_of_process(pid: int) -> int:
    """The cookie of the netns in which a process is, which is where its main thread is."""
    with NetNs.from_pid(pid) as netns:
        return netns.cookie


def cookies_of_threads(pid: int) -> dict[int, int]:
    """Thread id -> cookie of the netns in which it is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        with NetNs.from_path(f"/proc/{pid}/task/{name}/ns/net") as netns:
            found[int(name)] = netns.cookie
    return found


def sockets_of(pid: int) -> dict[int, int]:
    """Inode number of each socket that a process holds -> its file descriptor there."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            named = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
            if named:
                found[int(named[1])] = int(name)
    return found


def netns_held_by(pid: int) -> set[int]:
    """The inode of each netns that a process holds open by a file descriptor.

    The link of one that was opened by its name reads as that path, so the file itself is asked; it
    is one of a program of ours.
    """
    nsfs, found = os.stat("/proc/self/ns/net").st_dev, set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            file = os.stat(f"/proc/{pid}/fd/{name}")
            if file.st_dev == nsfs:
                found.add(file.st_ino)
    return found


def ask(netns: str, port: int) -> str:
    """What 127.0.0.1:PORT in the netns (a path) says, or ``refused``, ``reset``, or why it failed.

    The client is a socket of ours that is made there; no process is started for it.
    """
    with NetNs.from_path(netns) as inside:
        try:
            with inside.connect(("127.0.0.1", port), PATIENCE) as client:
                said = b"".join(iter(lambda: client.recv(4096), b""))
                return said.decode(errors="replace")
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"
        except OSError as error:
            return f"failed: {error}"
