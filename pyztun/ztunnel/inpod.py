"""The listeners of a workload in the ZDS form, and what is done where a pod cannot have them.

What Istio's ztunnel makes (src/proxy.rs, src/inpod/config.rs): 15008, 15006 and 15001 on the
wildcard address, SO_REUSEPORT so that an upgrade can serve a pod twice, and, where the process may,
a mark that the pod's own rules leave alone. REDIRECT of what arrives from outside goes to the
address of the incoming interface, so loopback would not do.

Not its IP_TRANSPARENT, which REDIRECT has no use for. A client may have two connections from one
port, to two ports of a pod; both are redirected to 15006, so the kernel gives the second another
source port, behind the early demux, which has found the first one's socket for it. It takes that
back (nf_nat_ipv4_local_in(), Linux 5.13), but not from a socket that is transparent, as those are
that such a listener accepts: the second connection's SYN would go to the first one's socket, again
and again.

A `[::]` listener without IPV6_V6ONLY takes IPv4 too, also where IPv6 is switched off by sysctl.
Only a kernel or pod without the family at all (EAFNOSUPPORT, EADDRNOTAVAIL) gets 0.0.0.0.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from pyztun import native
from pyztun.addresses import listener_spec
from pyztun.ztunnel.settings import SOCKS5_PORT

if TYPE_CHECKING:
    from pyztun.service.log import Log
    from pyztun.ztunnel.settings import InPodSettings

MARK = 0x539
"""SO_MARK of everything that ztunnel sends; in-pod rules do not capture it (RULES: 1337)."""

SET_MARK = "setsockopt(SO_MARK)"
NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class InPod:
    """Makes a workload's listeners, by the first plan that the pod allows. One thread.

    :ivar ports: of the listeners, in their order.
    :ivar plan: what is tried first, without this class where speed counts.
    """

    def __init__(self, wanted: InPodSettings, home_fd: int, log: Log) -> None:
        """:param home_fd: netns of the thread that will call open(), proven, borrowed."""
        self._home_fd, self._log = home_fd, log
        self._plans: dict[InPodSettings, native.ListenPlan] = {}
        if wanted.marked and not _may_mark():
            wanted = replace(wanted, marked=False)
            self._say_unprivileged("the process lacks CAP_NET_ADMIN and CAP_NET_RAW")
        self._said = not wanted.marked
        self._wanted = wanted
        self.ports = wanted.all_ports
        self.plan = self._plan(wanted)
        self.addresses = " ".join(map(str, self.plan.specs))

    def open(self, netns_fd: int, failed: int = 0) -> list[int]:
        """Listeners that the caller owns. SyscallError: why the last plan that was tried failed.

        :param failed: the -errno with which ``plan`` was just tried, so that it is not tried again.
        """
        return self._open(netns_fd, self._wanted, failed)

    def open_one(self, netns_fd: int, port: int) -> int:
        """The listener of that port alone, as open() makes it; the caller owns it. SyscallError."""
        is_socks5 = port == SOCKS5_PORT
        ports = () if is_socks5 else (port,)
        return self._open(netns_fd, replace(self._wanted, ports=ports, socks5=is_socks5))[0]

    def _open(self, netns_fd: int, wanted: InPodSettings, failed: int = 0) -> list[int]:
        plan = self._plan(wanted)
        rc = failed or plan.attempt(netns_fd, self._home_fd)
        while rc < 0:
            lesser = self._lesser(wanted, plan, -rc)
            if lesser is None:
                raise plan.failed(rc)
            wanted, plan = lesser, self._plan(lesser)
            rc = plan.attempt(netns_fd, self._home_fd)
        return plan.made()

    def _lesser(
        self, wanted: InPodSettings, plan: native.ListenPlan, number: int
    ) -> InPodSettings | None:
        """What to try after a failure; None where nothing less would help."""
        syscall, index = plan.failed_at()
        if wanted.ipv6 and number in NO_FAMILY and plan.specs[index].family == native.IPV6:
            return replace(wanted, ipv6=False)
        if wanted.marked and number == errno.EPERM and syscall == SET_MARK:
            if not self._said:
                self._say_unprivileged(str(plan.failed(-number)))
                self._said = True
            return replace(wanted, marked=False)
        return None

    def _say_unprivileged(self, reason: str) -> None:
        self._log.event(
            "warning",
            "no-mark",
            reason=reason,
            consequence="listeners without SO_MARK; nothing can be relayed",
        )

    def _plan(self, wanted: InPodSettings) -> native.ListenPlan:
        if wanted not in self._plans:
            self._plans[wanted] = native.ListenPlan(_specs(wanted))
        return self._plans[wanted]


def _specs(wanted: InPodSettings) -> list[native.ListenerSpec]:
    host = "127.0.0.1" if wanted.loopback else "::" if wanted.ipv6 else "0.0.0.0"  # noqa: S104
    places = [(host, port) for port in wanted.ports]
    if wanted.socks5:
        places.append(("127.0.0.1", SOCKS5_PORT))
    flags = native.NONBLOCK | (native.REUSEPORT if wanted.reuse_port else native.REUSEADDR)
    mark = MARK if wanted.marked else 0
    return [
        listener_spec(host, port, backlog=wanted.backlog, flags=flags, mark=mark)
        for host, port in places
    ]


def _may_mark() -> bool:
    """Whether we may mark at home; over a pod of another user namespace we may still not.

    The kernel asks for CAP_NET_ADMIN or CAP_NET_RAW over the owner of the socket's netns
    (net/core/sock.c).
    """
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        except PermissionError:
            return False
    return True
