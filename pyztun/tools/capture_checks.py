"""What the demo of capture looks at: visits, and the rules and routes in a pod."""

from __future__ import annotations

import os
import re
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.tools import evidence, processes
from pyztun.tools.capture_stage import IPV6
from pyztun.tools.checks import listed
from pyztun.tools.node_checks import UIDS
from pyztun.tools.visit_checks import VisitChecks

if TYPE_CHECKING:
    from pyztun.tools.stage import Pod

TABLE = ("list", "table", "inet", "pyztun")
RULE = ("rule", "show", "pref", "32764")
ROUTE = ("route", "show", "table", "100")
REDIRECTED = ["15006", "15006", "15001", "15001"]
"""Where the rules lead to, in the order of the listing: in, then out, IPv4 before IPv6."""
GUARDS = 3
SOON = 1.0
"""Seconds, of which a repair needs a tenth."""


class CaptureChecks(VisitChecks):
    """See VisitChecks."""

    def no_process_of(self, pid: int, pod: Pod) -> None:
        """ztunnel is not among those in the pod, whatever it has there."""
        found = evidence.processes_in(pod.inode)
        self._check(
            f"ztunnel is no process in {pod.name}", pid not in found, f"there: {listed(found)}"
        )

    def listing(self, pod: Pod) -> str:
        """Our table in the pod, without counters, as nft lists it; "" where there is none."""
        return processes.run(self._site.nft_in(pod, "-s", *TABLE)).stdout

    def rules_are_there(self, pod: Pod, shown: bool) -> None:
        """Those that redirect and those that reset; if asked for, shows the first."""
        text = self.listing(pod)
        if shown:
            self._terminal.command(self._site.nft_in(pod, "-s", *TABLE))
            chosen = [line for line in text.splitlines() if re.search(r"chain nat|redirect", line)]
            folded = "\n".join(chosen).replace(" counter", "\n\t\t\tcounter")
            self._terminal.output(folded.replace("\t", "  "))
        ports = re.findall(r"redirect to :(\d+)", text)
        self._check(f"the rules in {pod.name} redirect to", ports == REDIRECTED, listed(ports))
        guards = text.count("reject with tcp reset")
        self._check("what was not redirected they reset", guards == GUARDS, f"{guards} guards")

    def routes_are_there(self, pod: Pod, shown: bool) -> None:
        """What the application answers to ztunnel goes to lo."""
        if shown:
            self._show_ip(pod, *RULE)
            self._show_ip(pod, *ROUTE)
        for flag in self._flags:
            rule = self._ip(pod, flag, *RULE)
            route = self._ip(pod, flag, *ROUTE)
            as_told = "fwmark 0x111/0xfff lookup 100" in rule and "local default dev lo" in route
            self._check(
                f"IPv{flag[1]}: marked answers stay in {pod.name}",
                as_told,
                "mark 0x111, table 100, lo" if as_told else f"{rule or 'no rule'}, {route}",
            )

    def nothing_is_redirected(self, pod: Pod) -> None:
        """Not one rule, no table 100."""
        words = self._site.nft_in(pod, "list", "ruleset")
        rules = processes.run(words).stdout
        self._check(f"no rule is left in {pod.name}", not rules, f"{len(rules.splitlines())} lines")
        left = [
            text
            for flag in self._flags
            for words in (RULE, ROUTE)
            if (text := self._ip(pod, flag, *words))
        ]
        self._check("nor a route of ours", not left, listed(left))

    @property
    def _flags(self) -> list[str]:
        return ["-6" if family is IPV6 else "-4" for family in self._site.families]

    def _ip(self, pod: Pod, *words: str) -> str:
        """Of a table that does not exist, ip says so on stderr."""
        return processes.run(self._site.ip_in(pod, *words)).stdout.strip()

    def _show_ip(self, pod: Pod, *words: str) -> None:
        self._terminal.command(self._site.ip_in(pod, *words))
        self._terminal.output(self._ip(pod, *words).replace("\t", " "))

    def repaired(self, pod: Pod, expected: str, began: float, what: str) -> None:
        """The rules are what they were; how soon after ``began``, at which that happened."""
        deadline = began + SOON
        while (text := self.listing(pod)) != expected and monotonic() < deadline:
            pass
        seconds = monotonic() - began
        self._check(
            f"the rules in {pod.name} are back, every line",
            text == expected and seconds < SOON,
            f"{1000 * seconds:.0f} ms after {what}" if text == expected else "they are not",
        )

    def agent_logged_repair(self, pod: Pod) -> None:
        """In its own words."""
        event = self._site.agent.wait_for_event("rules-repaired", uid=UIDS[pod.name])
        what, name = event["what"], os.path.basename(event["netns"])
        as_told = what.split(", ")[0] == "rules"
        self._check("the agent logs rules-repaired", as_told, f"{what} of {name}")
