"""What the demo of capture does and looks at; the words around it are in capture_script.py."""

from __future__ import annotations

import os
import signal
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.tools import drawings, processes
from pyztun.tools.capture_checks import CaptureChecks
from pyztun.tools.capture_stage import IPV4, PORT
from pyztun.tools.checks import listed
from pyztun.tools.node_checks import NO_ZTUNNEL, READY, RESET, UIDS
from pyztun.tools.node_story import NodeStory
from pyztun.tools.visitor import Visitor, visit

if TYPE_CHECKING:
    from pyztun.tools.capture_stage import CaptureStage
    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod
    from pyztun.tools.terminal import Terminal

FLUSH = ("flush", "ruleset")


class CaptureStory(NodeStory):
    """The steps, each a method; they build on each other in the order of the script."""

    _stage: CaptureStage
    _see: CaptureChecks

    def __init__(self, stage: CaptureStage, terminal: Terminal, observations: Observations) -> None:
        self._see = CaptureChecks(stage, terminal, observations)
        super().__init__(stage, terminal, observations)

    def plain(self) -> None:
        stage = self._stage
        pods = [(pod.name, pod.cookie) for pod in stage.pods]
        self._terminal.drawing(drawings.bridged(pods, (IPV4.web, IPV4.cache)))
        stage.start_server()
        self._terminal.command(stage.server.words)
        said = stage.server.wait_ready()
        self._check(f"the server, pid {stage.server.pid}, reports", said == "READY=1", said)
        for family in stage.families:
            seen = self._see.visited(family)
            if family is IPV4:
                self._see.draw(seen)
                self._see.first_page(seen)
            self._see.same_page(seen.said, f"cache, at {family.cache},")
            self._see.is_plain(seen)
            self._see.saw(seen.noted, family.cache, "cache")

    def programs_start(self) -> None:
        self._terminal.command(["export", f"PYZTUN_CONTROL={self._stage.control}"])
        self._start_agent()
        self._start_ztunnel(*self._stage.ztunnel_options)
        self._see.list_is(READY)
        for pod in self._stage.pods:
            self._see.nothing_is_redirected(pod)

    def pods_are_captured(self) -> None:
        stage = self._stage
        with Visitor(stage.cache.reference, IPV4.web, PORT) as visitor:
            for pod in stage.pods:
                self._add_command(pod)
                self._see.added(pod, RESET)
            ends = visitor.end()
        self._check("a connection from before, half a request on it, is cut", ends == "reset", ends)
        self._see.list_is(READY, *stage.pods)
        for pod in stage.pods:
            self._see.rules_are_there(pod, shown=pod is stage.cache)
        for pod in stage.pods:
            self._see.routes_are_there(pod, shown=pod is stage.web)

    def same_page_again(self) -> None:
        stage = self._stage
        for family in stage.families:
            before = len(stage.logged())
            seen = self._see.visited(family)
            self._see.draw(seen)
            self._see.is_relayed(seen)
            self._see.same_page(seen.said, "cache")
            self._see.saw(seen.noted, family.cache, "cache")
            self._see.log_lines(before, seen)
        if stage.node is not None:
            noted = len(stage.noted())
            said = visit(stage.node.reference, IPV4.web, PORT).said
            self._see.same_page(said, "a client on the node, outside of both,")
            self._see.saw(stage.noted()[noted:], IPV4.node, "the node")
        for pod in stage.pods:
            self._see.no_process_of(stage.ztunnel.pid, pod)
        self._see.threads_at_home()

    def ztunnel_is_killed(self) -> None:
        stage = self._stage
        self._kill("ztunnel", stage.ztunnel)
        for family in stage.families:
            self._see.refused(stage.cache, family)
        if stage.node is not None:
            self._see.refused(stage.node, IPV4)
        self._see.list_is(NO_ZTUNNEL, *stage.pods)

    def ztunnel_is_back(self) -> None:
        stage = self._stage
        before = [self._see.listing(pod) for pod in stage.pods]
        self._start_ztunnel(*stage.ztunnel_options)
        self._see.list_is(READY, *stage.pods)
        seen = self._see.visited(IPV4)
        self._see.is_relayed(seen)
        self._see.same_page(seen.said, "cache")
        same = before == [self._see.listing(pod) for pod in stage.pods]
        self._check("nobody had to touch the rules", same, "the same in both pods")

    def rules_are_flushed(self) -> None:
        cache = self._stage.cache
        rules = self._see.listing(cache)
        began = self._flush(cache)
        self._see.repaired(cache, rules, began, "the flush")
        self._observations.end_of_step()
        self._see.agent_logged_repair(cache)
        self._look_into_the_window(cache, rules)
        seen = self._see.visited(IPV4)
        self._see.is_relayed(seen)
        self._see.same_page(seen.said, "cache")

    def _flush(self, pod: Pod) -> float:
        """Returns when it began."""
        words = self._stage.nft_in(pod, *FLUSH)
        self._terminal.command(words)
        began = monotonic()
        done = processes.run(words)
        self._check("nft did it", done.status == 0, done.summary())
        return began

    def _look_into_the_window(self, cache: Pod, rules: str) -> None:
        """Stops podside while it is open: it is too short to be looked into."""
        podside = self._stage.agent.wait_for_event("podside-started")["pid"]
        self._terminal.command(["kill", "-STOP", str(podside)])
        os.kill(podside, signal.SIGSTOP)
        try:
            self._flush(cache)
            with Visitor(cache.reference, IPV4.web, PORT) as visitor:
                owners = [end.owner for end in self._see.chain_of(visitor) if end.pod == "cache"]
                seen = f"the ends in cache are those of {listed(owners)}"
                self._check("a connection of that moment has a way out", owners == ["client"], seen)
                self._terminal.command(["kill", "-CONT", str(podside)])
                began = monotonic()
                os.kill(podside, signal.SIGCONT)
                self._see.repaired(cache, rules, began, "podside goes on")
                ends = visitor.end()
            self._check("and is cut by the repair", ends == "reset", ends)
        finally:
            os.kill(podside, signal.SIGCONT)

    def pods_are_deleted(self) -> None:
        stage = self._stage
        for pod in stage.pods:
            self._see.command("del", UIDS[pod.name])
            self._see.deleted(pod)
            self._see.nothing_is_redirected(pod)
        self._see.list_is(READY)
        for family in stage.families:
            seen = self._see.visited(family)
            self._see.is_plain(seen)
            self._see.same_page(seen.said, "cache")
            self._see.saw(seen.noted, family.cache, "cache")

    def all_ends(self) -> None:
        stage = self._stage
        stage.server.stop()
        stage.remove_pods()
        stage.leave_node()
        for pod in (*stage.pods, *([stage.node] if stage.node else [])):
            self._see.gone(pod)
        self._stop_both()
