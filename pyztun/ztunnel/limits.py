"""How many peers, connections and workloads the fd table has room for.

Each has its own share, so that none can take the descriptors of another: a flood of peers must
not keep a listener from being made, nor a thousand pods a peer from being accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyztun import native
from pyztun.errors import PyztunError

OWN_FDS = 64
"""stdio, epoll, wake fds, sockets of the service itself, and room for what Python opens."""

IN_FLIGHT_FDS = native.MAX_FDS + 3
"""One hostile message installs up to 253 descriptors in our table before we can close them."""

CLOSING_FDS = 256
"""What strangers sent and a thread is closing: PZ_CLOSER_ROOM of csrc/closer.h."""

MAX_CONNECTIONS = 512
"""Of the responder: each is answered in microseconds, and most of the rest is waiting."""

MAX_FLOWS = 65536
PIPES = 32
"""Of the relay: connections at a time, and pipes of each thread."""


@dataclass(frozen=True)
class Needs:
    """What a form needs of the fd table.

    :ivar a_workload: descriptors that a workload holds.
    :ivar peers: connections to the form's own socket that it wants at most.
    :ivar connections: of pods, that it wants at most.
    :ivar connections_share: these and the pipes have the n-th part of the table at most.
    :ivar a_connection: descriptors that one holds.
    :ivar pipes: that each thread wants at most.
    :ivar threads: of the relay; each has two descriptors of its own.
    """

    a_workload: int
    peers: int
    connections: int
    connections_share: int
    a_connection: int = 1
    pipes: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Budget:
    """Upper limits that together fit into the fd table."""

    max_peers: int
    max_connections: int
    max_workloads: int
    max_pipes: int


def share_out(fd_limit: int, needs: Needs, max_workloads: int) -> Budget:
    """Shares the fd table. PyztunError where it is too small for even one workload.

    :param fd_limit: RLIMIT_NOFILE.
    :param max_workloads: wanted at most.
    """
    free = fd_limit - OWN_FDS - IN_FLIGHT_FDS - CLOSING_FDS - 2 * needs.threads
    peers = min(needs.peers, free // 4)
    share = free // needs.connections_share
    pipes = min(needs.pipes, share // 8 // (2 * needs.threads)) if needs.threads else 0
    in_pipes = 2 * pipes * needs.threads
    connections = min(needs.connections, (share - in_pipes) // needs.a_connection)
    rest = free - peers - in_pipes - connections * needs.a_connection
    workloads = min(max_workloads, rest // needs.a_workload)
    if min(peers, connections, workloads) < 1:
        raise PyztunError(
            f"RLIMIT_NOFILE {fd_limit} is too low for {needs.a_workload} descriptors a workload: "
            "raise it (ulimit -n)"
        )
    return Budget(peers, connections, workloads, pipes)
