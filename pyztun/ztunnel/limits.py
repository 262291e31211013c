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


@dataclass(frozen=True)
class Budget:
    """Upper limits that together fit into the fd table."""

    max_peers: int
    max_connections: int
    max_workloads: int


def share_out(fd_limit: int, listeners: int, max_peers: int, max_workloads: int) -> Budget:
    """Shares the fd table. PyztunError where it is too small for even one workload.

    :param fd_limit: RLIMIT_NOFILE.
    :param listeners: descriptors that a workload holds.
    :param max_peers: wanted at most; a quarter of the table at most.
    :param max_workloads: wanted at most.
    """
    free = fd_limit - OWN_FDS - IN_FLIGHT_FDS - CLOSING_FDS
    peers = min(max_peers, free // 4)
    connections = min(MAX_CONNECTIONS, free // 8)
    workloads = min(max_workloads, (free - peers - connections) // listeners)
    if min(peers, connections, workloads) < 1:
        raise PyztunError(
            f"RLIMIT_NOFILE {fd_limit} is too low for {listeners} listeners: raise it (ulimit -n)"
        )
    return Budget(peers, connections, workloads)
