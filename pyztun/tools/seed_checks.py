"""What the demo of the seed form looks at: the answers of pyztun-cni and of ztunnel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyztun.errors import ProtocolError
from pyztun.protocol import seed
from pyztun.tools import evidence, processes
from pyztun.tools.checks import Checks, listed

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyztun.tools.observations import Observations
    from pyztun.tools.seed_stage import SeedStage
    from pyztun.tools.stage import Pod


class SeedChecks(Checks):
    """See Checks."""

    def __init__(self, stage: SeedStage, observations: Observations) -> None:
        super().__init__(stage, observations)
        self._cni_words = stage.cni_words

    def sent_fd(self, done: processes.Finished) -> str:
        """pyztun-cni sent a descriptor; returns it as ``fd N``."""
        told = re.search(r": sending (fd \d+)$", done.stderr, re.MULTILINE)
        self._check("pyztun-cni sent", told is not None, sent := told[1] if told else "nothing")
        return sent

    def received_fd(self, done: processes.Finished, pod: Pod) -> str:
        """pyztun-ztunnel received one from that process; returns it as ``fd N``."""
        event = self._stage.ztunnel.wait_for_event("listeners-ready", netns=pod.cookie)
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

    def list_names(self, pods: Collection[Pod]) -> None:
        """`pyztun-cni --list` shows these pods, no other."""
        done = processes.run(self._cni_words("--list"))
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

    def no_netns_held(self) -> None:
        """ztunnel has no descriptor of a pod's netns; home's own it keeps, to come back."""
        held = evidence.netns_held_by(self._stage.ztunnel.pid)
        names = [pod.name for pod in self._stage.pods if pod.inode in held]
        self._check("ztunnel has no fd of a pod's netns open", not names, ", ".join(names))

    def says_ok(self, view: evidence.View, port: int, pod: Pod) -> None:
        """A client in the pod got the answer of ztunnel there."""
        said = view.answers[port]
        self._check(f"127.0.0.1:{port} in {pod.name} says", said == "ok\n", repr(said))
