"""What the demo looks at in more than one step: each method states something and checks it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyztun.errors import ProtocolError
from pyztun.protocol import seed
from pyztun.tools import evidence, processes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod, Stage

PORTS = (15001, 15006, 15008)
DEATH_PATIENCE = 2.0
"""Seconds for the kernel to report the end of a netns; mostly it takes less than a millisecond."""


class Checks:
    """Looks at the stage and records what it saw."""

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

    def sent_fd(self, done: processes.Finished) -> str:
        """pyztun-cni sent a descriptor; returns it as ``fd N``."""
        told = re.search(r": sending (fd \d+)$", done.stderr, re.MULTILINE)
        self._check("pyztun-cni sent", told is not None, sent := told[1] if told else "nothing")
        return sent

    def received_fd(self, done: processes.Finished, pod: Pod) -> str:
        """pyztun-ztunnel received one from that process; returns it as ``fd N``."""
        event = self._stage.ztunnel.wait_for_event("listeners-ready", pod.cookie)
        received = f"fd {event['fd']}"
        from_it = event["pid"] == done.pid
        self._check("pyztun-ztunnel received", from_it, f"{received}, from pid {event['pid']}")
        return received

    def answer(self, done: processes.Finished, pod: Pod) -> None:
        """pyztun-ztunnel answered with the cookie of that pod, and pyztun-cni said so."""
        told = done.stdout.strip()
        self._check("pyztun-cni printed", told == "listeners ready", told or done.summary())
        found = re.search(r": (ready .*)$", done.stderr, re.MULTILINE)
        text = found[1] if found else ""
        try:
            cookie = seed.parse(text.encode()).cookie
        except ProtocolError:
            cookie = 0
        self._check(f"the answer names {pod.name}", cookie == pod.cookie, text or "no answer")

    def listeners(self, pod: Pod) -> list[tuple[evidence.Listener, str]]:
        """The listeners are in the pod, not at home, and are ztunnel's; returns (listener, fd)."""
        listeners = evidence.look_inside(pod.reference).listeners
        fds = evidence.sockets_of(self._stage.ztunnel.pid)
        home = evidence.listening_at_home()
        expected = [f"127.0.0.1:{port}" for port in PORTS]
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

    def no_netns_held(self) -> None:
        """ztunnel has no descriptor of a pod's netns; home's own it keeps, to come back."""
        held = evidence.netns_held_by(self._stage.ztunnel.pid)
        names = [pod.name for pod in self._stage.pods if pod.inode in held]
        self._check("ztunnel has no fd of a pod's netns open", not names, ", ".join(names))

    def list_names(self, pods: Collection[Pod]) -> None:
        """`pyztun-cni --list` shows these pods, no other."""
        done = processes.run(self._stage.cni_words("--list"))
        cookies = {int(each) for each in re.findall(r"^netns=(\d+)", done.stdout, re.MULTILINE)}
        expected = {pod.cookie for pod in pods}
        names = " and ".join(pod.name for pod in pods)
        self._check(
            f"ztunnel says it serves {names}",
            done.status == 0 and cookies == expected,
            f"cookie {listed(cookies)}",
        )

    def released(self, done: processes.Finished, pod: Pod) -> None:
        told = done.stdout.strip()
        as_told = done.status == 0 and told == f"released netns={pod.cookie}"
        self._check("pyztun-cni printed", as_told, told or done.summary())

    def gone(self, pod: Pod) -> None:
        gone = self._stage.is_gone(pod, DEATH_PATIENCE)
        news = f"netlink message RTM_DELNSID {pod.nsid}"
        seen = news if gone else f"no news in {DEATH_PATIENCE:g} s"
        self._check(f"the kernel reports the end of {pod.name}", gone, seen)


def listed(things: Iterable[object]) -> str:
    """The things with commas between them, or ``none``; those of a set in their order."""
    in_order = sorted(things, key=str) if isinstance(things, set) else things
    return ", ".join(map(str, in_order)) or "none"
