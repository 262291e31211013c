"""The stage of the demo of capture: two pods on a bridge, a web server in one of them.

The bridge and the node's end of the wires are in a netns that the demo makes: nothing is changed
in the netns in which the demo runs.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from pyztun.netns import NetNs
from pyztun.tools import page_server, processes
from pyztun.tools.node_stage import NodeStage
from pyztun.tools.stage import Pod

if TYPE_CHECKING:
    from pyztun.tools.daemon import Daemon

SBIN = "/usr/sbin:/sbin:/usr/local/sbin"
"""Where nft and ip may be, besides PATH."""
PORT = 8080


class Addresses(NamedTuple):
    """Of each netns, in one family."""

    web: str
    cache: str
    node: str
    length: int


IPV4 = Addresses("10.0.0.1", "10.0.0.2", "10.0.0.254", 24)
IPV6 = Addresses("fd00::1", "fd00::2", "fd00::fe", 64)

ON_BRIDGE = """\
link add bridge type bridge
link set bridge up
link set lo up
link add web type veth peer name eth0 netns {web}
link add cache type veth peer name eth0 netns {cache}
link set web master bridge up
link set cache master bridge up
"""
DIRECT = "link add eth0 netns {web} type veth peer name eth0 netns {cache}\n"
"""Where the kernel has no bridge."""


class CaptureStage(NodeStage):
    """Made whole or not at all.

    :ivar node: the netns with the bridge, as a pod; None where the kernel has no bridge.
    :ivar families: those that the kernel has, IPv4 first.
    :ivar ztunnel_options: with which it is started here.
    :ivar notes: the file in which the server notes who connects.
    """

    server: Daemon

    def __init__(self) -> None:
        super().__init__("web", "cache")
        try:
            self.nft, self._ip = _find("nft", "nftables"), _find("ip", "iproute2")
            self._nsenter = processes.find("nsenter")
            self._wire()
        except BaseException:
            self.close()
            raise
        self.notes = f"{self.directory}/notes"
        self.access_log = f"{self.directory}/access.log"
        # Whoever interrupts the demo in the middle of a connection need not wait for its end.
        self.ztunnel_options = ("--drain", "0.5", "--access-log", self.access_log)

    @property
    def web(self) -> Pod:
        return self._pods["web"]

    @property
    def cache(self) -> Pod:
        return self._pods["cache"]

    def _wire(self) -> None:
        self._of_node = ExitStack()
        self.undo.enter_context(self._of_node)
        netns = self._of_node.enter_context(NetNs.create())
        reference = f"/proc/{os.getpid()}/fd/{netns.fileno()}"
        node = Pod("the node", netns, reference, self.deathwatch)
        names = {pod.name: os.path.basename(pod.reference) for pod in self.pods}
        self.node: Pod | None = node
        try:
            self._batch(node, ON_BRIDGE.format_map(names))
        except processes.ProgramError:
            self._batch(node, DIRECT.format_map(names))
            self.node = None
        self._give_addresses(IPV4)
        self.families = [IPV4]
        with suppress(processes.ProgramError):  # built without IPv6, or told to do without
            self._give_addresses(IPV6)
            self.families.append(IPV6)

    def _give_addresses(self, family: Addresses) -> None:
        places = [(self.web, "eth0", family.web), (self.cache, "eth0", family.cache)]
        if self.node is not None:
            places.append((self.node, "bridge", family.node))
        # Nobody else is there who could have the same address.
        nodad = " nodad" if family is IPV6 else ""
        for pod, device, address in places:
            add = f"addr add {address}/{family.length} dev {device}{nodad}"
            self._batch(pod, f"link set lo up\n{add}\nlink set {device} up\n")

    def _batch(self, pod: Pod, text: str) -> None:
        """Runs lines of ip(8) in a pod. ProgramError."""
        path = f"{self.directory}/ip"
        with open(path, "w") as file:
            file.write(text)
        done = processes.run(self.words_in(pod, self._ip, "-batch", path))
        os.unlink(path)
        if done.status != 0:
            raise processes.ProgramError(f"ip in {pod.name}: {done.summary()}")

    def words_in(self, pod: Pod, *words: str) -> list[str]:
        """The command line of a program in a pod."""
        return [self._nsenter, f"--net={pod.reference}", *words]

    def nft_in(self, pod: Pod, *words: str) -> list[str]:
        """The command line of nft in a pod."""
        return self.words_in(pod, self.nft, *words)

    def ip_in(self, pod: Pod, *words: str) -> list[str]:
        """The command line of ip in a pod."""
        return [self._ip, "-n", os.path.basename(pod.reference), *words]

    def start_server(self) -> None:
        """Starts the web server in web. ProgramError."""
        words = [sys.executable, "-IS", page_server.__file__, str(PORT), self.notes]
        self.server = self.start(self.words_in(self.web, *words))

    def noted(self) -> list[str]:
        """Who has connected to the server so far, each as ADDRESS PORT."""
        with open(self.notes) as notes:
            return notes.read().splitlines()

    def logged(self) -> list[str]:
        """The access log of ztunnel so far: whole lines, with blanks instead of tabs."""
        if not os.path.exists(self.access_log):
            return []
        with open(self.access_log) as log:
            return [re.sub(r"\t", " ", each) for each in log.read().split("\n")[:-1]]

    def leave_node(self) -> None:
        """Lets go of the netns of the node, which ends, and the wires with it."""
        self._of_node.close()


def _find(name: str, package: str) -> str:
    """The path of a command of the system. ProgramError."""
    found = shutil.which(name) or shutil.which(name, path=SBIN)
    if found is None:
        raise processes.ProgramError(f"needs the command {name} (package {package})")
    return found
