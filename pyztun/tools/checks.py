"""What every demo looks at: each method states something and checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyztun.tools import evidence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod, Stage

PORTS = (15001, 15006, 15008)
CLOSED_PORT = 15002
DEATH_PATIENCE = 5.0
"""Seconds for the kernel to report the end of a netns; mostly it takes less than a millisecond.

One worker of the kernel ends all netns of the machine, one batch after the other.
"""


class Checks:
    """Looks at the stage and records what it saw.

    :cvar host: where the listeners of a pod are.
    """

    host = "127.0.0.1"

    def __init__(self, stage: Stage, observations: Observations) -> None:
        self._stage = stage
        self._check = observations.check

    def no_process(self, pod: Pod) -> None:
        """Not one process is in the pod."""
        found = evidence.processes_in(pod.inode)
        self._check(f"no process is in {pod.name}", not found, f"{len(found)} processes")

    def no_listener(self, pod: Pod, view: evidence.View) -> None:
        """Not one socket listens in the pod."""
        found = view.listeners
        self._check(f"nothing listens in {pod.name}", not found, f"{len(found)} LISTEN sockets")

    def listeners(self, pod: Pod) -> list[tuple[evidence.Listener, str]]:
        """The listeners are in the pod, not at home, and are ztunnel's; returns (listener, fd)."""
        listeners = evidence.look_inside(pod.reference).listeners
        fds = evidence.sockets_of(self._stage.ztunnel.pid)
        home = evidence.listening_at_home()
        expected = [f"{self.host}:{port}" for port in PORTS]
        as_told = [str(each) for each in listeners] == expected
        self._check(f"the kernel lists in {pod.name}", as_told, listed(listeners))
        ours = [each for each in home if each.socket in fds]
        seen = f"{len(ours)} of the {len(home)} LISTEN sockets there"
        self._check("at home it lists none of ztunnel's", not ours, seen)
        tied = [(each, f"fd {fds.get(each.socket, '?')}") for each in listeners]
        held = bool(listeners) and all(each.socket in fds for each in listeners)
        self._check(
            "these sockets are ztunnel's", held, listed(f"{each.port} = {fd}" for each, fd in tied)
        )
        return tied

    def threads_at_home(self) -> None:
        """Not only the process as /proc/PID shows it, which is its main thread."""
        where = evidence.cookies_of_threads(self._stage.ztunnel.pid)
        cookies = set(where.values())
        seen = f"{len(where)} threads, cookie {listed(cookies)}"
        self._check(
            "every thread of ztunnel is at home", cookies == {self._stage.home.cookie}, seen
        )

    def gone(self, pod: Pod, name: str = "") -> None:
        """The kernel has said that the netns of the pod is no more."""
        gone = self._stage.is_gone(pod, DEATH_PATIENCE)
        news = f"netlink message RTM_DELNSID {pod.nsid}"
        seen = news if gone else f"no news in {DEATH_PATIENCE:g} s"
        self._check(f"the kernel reports the end of {name or pod.name}", gone, seen)

    def nothing_is_left(self, pod: Pod) -> None:
        """No listener in the pod, and whoever connects there is refused."""
        view = evidence.look_inside(pod.reference, PORTS)
        self.no_listener(pod, view)
        refused = all(said == "refused" for said in view.answers.values())
        self._check(f"a client in {pod.name} gets", refused, listed(view.answers.values()))


def listed(things: Iterable[object]) -> str:
    """The things with commas between them, or ``none``; those of a set in their order."""
    in_order = sorted(things, key=str) if isinstance(things, set) else things
    return ", ".join(map(str, in_order)) or "none"
