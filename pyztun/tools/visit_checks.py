"""What the demo of capture looks at, visits: whose sockets a connection goes through."""

from __future__ import annotations

import os
import re
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple

from pyztun.tools import drawings, evidence, processes
from pyztun.tools.capture_stage import PORT
from pyztun.tools.checks import listed
from pyztun.tools.node_checks import NodeChecks
from pyztun.tools.page_server import SIZE
from pyztun.tools.visitor import Visitor, visit

if TYPE_CHECKING:
    from pyztun.tools.capture_stage import Addresses, CaptureStage
    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod
    from pyztun.tools.terminal import Terminal

AT_ONCE = 1.0
"""Seconds, of which a refusal needs a thousandth."""
CLIENT, SERVER, ZTUNNEL = "client", "server", "ztunnel"


class End(NamedTuple):
    """One end of a connection.

    :ivar fd: with which its owner holds it, for example ``fd 12``.
    """

    owner: str
    fd: str
    pod: str
    local: str
    remote: str


class Seen(NamedTuple):
    """A visit at which we looked while half of the request was on its way.

    :ivar said: how it ended, see Visitor.end().
    :ivar chain: the ends from the client on, as far as they lead.
    :ivar noted: what the server has noted meanwhile.
    """

    said: str
    chain: list[End]
    noted: list[str]

    @property
    def owners(self) -> list[str]:
        return [end.owner for end in self.chain]


class VisitChecks(NodeChecks):
    """See NodeChecks."""

    def __init__(self, stage: CaptureStage, terminal: Terminal, observations: Observations) -> None:
        super().__init__(stage, terminal, observations)
        self._site = stage
        self._page = ""

    def visited(self, family: Addresses) -> Seen:
        """A client in cache asks for the page of web; we look at it in the middle."""
        before = len(self._site.noted())
        try:
            with Visitor(self._site.cache.reference, family.web, PORT) as visitor:
                noted = self._wait_for_note(before)
                chain = self.chain_of(visitor)
                return Seen(visitor.end(), chain, noted)
        except OSError as error:
            return Seen(f"failed: {error}", [], self._site.noted()[before:])

    def _wait_for_note(self, before: int) -> list[str]:
        """What was noted since; waits until it is anything: then all have connected."""
        deadline = monotonic() + self.patience
        while len(noted := self._site.noted()) == before and monotonic() < deadline:
            sleep(processes.PACE)
        return noted[before:]

    def chain_of(self, visitor: Visitor) -> list[End]:
        """From the client to its peer; if that is ztunnel's, on with its own connection, and so on.

        All of it is the kernel's: who is whose peer, and who holds the socket.
        """
        ends = self._ends(visitor)
        # Two may be the peer where ports coincide: then the one of ztunnel comes first.
        ends.sort(key=lambda end: end.owner != ZTUNNEL)
        chain = [end for end in ends if end.owner == CLIENT]
        while chain:
            here = chain[-1]
            found = [each for each in ends if each.remote == here.local and each not in chain]
            chain += found[:1]
            if not found or found[0].owner != ZTUNNEL:
                break
            on = ZTUNNEL, found[0].pod, visitor.remote
            found = [
                each
                for each in ends
                if (each.owner, each.pod, each.remote) == on and each not in chain
            ]
            chain += found[:1]
            if not found:
                break
        return chain

    def _ends(self, visitor: Visitor) -> list[End]:
        """All ends in both pods, with their owners."""
        holders = [(name, _sockets_of(self._pid_of(name))) for name in (ZTUNNEL, SERVER)]
        holders.append((CLIENT, {visitor.socket: visitor.fd}))
        found = []
        for pod in self._site.pods:
            for each in evidence.look_inside(pod.reference).connections:
                held = [(name, f"fd {fds[each.socket]}") for name, fds in holders
                        if each.socket in fds]  # fmt: skip
                owner, fd = held[0] if held else ("somebody", "")
                found.append(End(owner, fd, pod.name, each.local, each.remote))
        return found

    def _pid_of(self, name: str) -> int:
        program = getattr(self._site, name, None)
        return program.pid if program else 0

    def draw(self, seen: Seen) -> None:
        """The chain as a table."""
        rows = [(f"{end.owner}, {end.fd}", end.pod, end.local, end.remote) for end in seen.chain]
        header = ("whose socket", "in", "its address", "its peer's")
        self._terminal.drawing(drawings.table(header, rows))

    def is_plain(self, seen: Seen) -> None:
        """Client and server have each other's sockets, and nobody is between."""
        plain = seen.owners == [CLIENT, SERVER]
        self._check(
            "the peer of the client's socket is the server's",
            plain,
            f"{seen.chain[-1].remote}, {seen.chain[-1].local}" if plain else listed(seen.owners),
        )

    def is_relayed(self, seen: Seen) -> None:
        """ztunnel is there in both pods, twice in each."""
        ends = [*seen.chain, *[End("nobody", "", "", "", "")] * 6]
        told = (
            ("the client's peer is, in cache", ends[1], ZTUNNEL, "cache", ":15001"),
            ("what ztunnel connects to from cache is, in web", ends[3], ZTUNNEL, "web", ":15006"),
            ("what it connects to from there is, in web", ends[5], SERVER, "web", f":{PORT}"),
        )
        for what, end, owner, pod, port in told:
            as_told = (end.owner, end.pod) == (owner, pod) and end.local.endswith(port)
            self._check(what, as_told, f"{end.owner} at {end.local or 'no address'}")

    def first_page(self, seen: Seen) -> None:
        """This is the page; what comes later is compared with it."""
        self._page = self._page or seen.said
        self._check("the page", seen.said.startswith(f"{SIZE} bytes, "), seen.said)

    def same_page(self, seen: str, who: str) -> None:
        """Byte for byte."""
        self._check(f"{who} gets the page", seen == self._page, seen)

    def saw(self, noted: list[str], address: str, who: str) -> None:
        """The server has noted one connection, from that address."""
        addresses = [note.split()[0] for note in noted]
        self._check(
            f"the server saw the address of {who}", addresses == [address], listed(addresses)
        )

    def refused(self, pod: Pod, family: Addresses) -> None:
        """At once, and the server hears nothing of it."""
        before = len(self._site.noted())
        said, seconds = visit(pod.reference, family.web, PORT)
        self._check(
            f"a client in {pod.name} is refused at once",
            said == "refused" and seconds < AT_ONCE,
            f"{said} after {1000 * seconds:.1f} ms",
        )
        noted = self._site.noted()[before:]
        self._check("the server saw nothing of it", not noted, listed(noted))

    def log_lines(self, before: int, seen: Seen) -> None:
        """ztunnel has logged this visit twice: as outbound for cache, as inbound for web."""
        client = seen.chain[0].local if seen.chain else "?"
        ours = rf" src.addr={re.escape(client)} "
        outbound = rf'connection complete.*{ours}.*src.workload="cache".* direction="outbound"'
        inbound = r'connection complete.* dst.workload="web".* direction="inbound"'
        deadline = monotonic() + self.patience
        while len(lines := self._site.logged()[before:]) < 2 and monotonic() < deadline:  # noqa: PLR2004
            sleep(processes.PACE)
        for line in lines:
            self._terminal.output(line)
        for pattern, name, way in ((outbound, "cache", "outbound"), (inbound, "web", "inbound")):
            count = sum(bool(re.search(pattern, line)) for line in lines)
            told = f"ztunnel's access log has it for {name}"
            self._check(told, count == 1, f"{way}, {count} of {len(lines)} lines")


def _sockets_of(pid: int) -> dict[int, int]:
    """Like evidence.sockets_of(), of a process that need not be there."""
    return evidence.sockets_of(pid) if os.path.exists(f"/proc/{pid}/fd") else {}
