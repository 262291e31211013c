"""What the demos of a node look at: the commands to the agent, and what they print."""

from __future__ import annotations

import re
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pyztun.tools import evidence, processes
from pyztun.tools.checks import Checks, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyztun.tools.node_stage import NodeStage
    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod
    from pyztun.tools.terminal import Terminal

COLUMNS = 96
"""Of the terminal that the tables are made for; with the indentation they fit 100."""
UIDS = {"web": "pod-1", "db": "pod-2", "cache": "pod-3"}
READY, NO_ZTUNNEL = "ready", "pending: no ztunnel connected"
GONE = "degraded: netns gone"
RESET = "connections from before were reset"
NO_NUMBER = "-"
R = TypeVar("R")


class Row(NamedTuple):
    """A line of `pyztun-cni list`; the cookie says which netns is meant."""

    name: str
    uid: str
    cookie: str
    state: str

    def __str__(self) -> str:
        return f"{self.name}, {self.uid}, in netns {self.cookie} is {self.state}"


class NodeChecks(Checks):
    """See Checks. Commands are shown as they are typed, with what they print."""

    host = "[::]"

    def __init__(self, stage: NodeStage, terminal: Terminal, observations: Observations) -> None:
        super().__init__(stage, observations)
        self._node, self._terminal, self._observations = stage, terminal, observations

    def command(self, *arguments: str, during: Callable[[], None] | None = None) -> None:
        """Runs one, shows it and what it prints; it is in ``self.done`` then."""
        words = self._node.cni_words(*arguments)
        self._terminal.command(words)
        self.done = processes.run(words, env=self._node.env, during=during)
        self._terminal.output(self.done.stdout + self.done.stderr)

    def added(self, pod: Pod, *more: str) -> None:
        """`pyztun-cni add` has said that the pod is served, and these lines."""
        told = f"ready {pod.name} uid={UIDS[pod.name]} netns={pod.cookie}"
        self._printed(f"ztunnel has confirmed {pod.name}", "\n".join((told, *more)))

    def deleted(self, pod: Pod) -> None:
        """`pyztun-cni del` has said that ztunnel confirmed the end of the pod."""
        told = f"deleted {pod.name} uid={UIDS[pod.name]}"
        self._printed(f"ztunnel has confirmed that {pod.name} is over", told)

    def _printed(self, told: str, expected: str) -> None:
        as_told = self.done.status == 0 and self.done.stdout.strip() == expected
        self._check(told, as_told, self.done.summary())

    def list_is(self, state: str, *pods: Pod) -> None:
        """`pyztun-cni list` shows these pods in that state, and no other.

        What it depends on (a ztunnel that dials, a mount event) may come a moment later, so it is
        asked until it does, and shown once.
        """
        told = [Row(pod.name, UIDS[pod.name], str(pod.cookie), state) for pod in pods]
        done, rows = self._ask_until("list", rows_of, told)
        as_told = done.status == 0 and rows == told
        seen = f"in netns {listed(row.cookie for row in rows)}" if rows else "no workload"
        names = " and ".join(pod.name for pod in pods)
        self._check(
            f"{names} are listed as {state}" if pods else "nobody is listed",
            as_told,
            seen if as_told else "; ".join(map(str, rows)) or done.summary(),
        )

    def ztunnel_is_known(self, workloads: int) -> None:
        """`pyztun-cni status` shows our ztunnel alone, behind its snapshot, and what it knows."""
        told = [(str(self._node.ztunnel.pid), "steady", str(workloads))]
        _, seen = self._ask_until("status", ztunnels_of, told)
        shown = [f"pid {pid} {phase}, knows {count}" for pid, phase, count in seen]
        self._check("the agent has one ztunnel", seen == told, listed(shown))

    @property
    def patience(self) -> float:
        """Seconds to wait for what was told: none where something was not as told already."""
        return 0.0 if self._observations.failed else processes.PATIENCE

    def _ask_until(
        self, command: str, read: Callable[[str], list[R]], told: list[R]
    ) -> tuple[processes.Finished, list[R]]:
        """Runs a command until it says what was told, for a while at most; shows the last run."""
        deadline = monotonic() + self.patience
        words = self._node.cni_words(command)
        while True:
            done = processes.run_on_terminal(words, COLUMNS, self._node.env)
            seen = read(done.stdout)
            if seen == told or monotonic() > deadline:
                self._terminal.command(words)
                self._terminal.output(done.stdout + done.stderr)
                return done, seen

    def agent_holds(self, pods: Sequence[Pod]) -> None:
        """The agent has a descriptor of each of these netns, and of no other pod's."""
        self._holds("the agent", self._node.agent.pid, pods)

    def ztunnel_holds(self, pods: Sequence[Pod]) -> None:
        """The same of ztunnel."""
        self._holds("ztunnel", self._node.ztunnel.pid, pods)

    def _holds(self, name: str, pid: int, pods: Sequence[Pod]) -> None:
        held = evidence.netns_held_by(pid)
        names = [pod.name for pod in self._node.pods if pod.inode in held]
        as_told = names == [pod.name for pod in pods]
        self._check(f"{name} holds by an fd the netns of", as_told, listed(names))


def rows_of(text: str) -> list[Row]:
    """The table of `pyztun-cni list`. One that is ready is known to a ztunnel, else it is not."""
    found = []
    for cells in _table(text.splitlines()):
        row = Row(*(cells.get(key, "") for key in ("NAME", "UID", "COOKIE", "STATE")))
        is_known = cells.get("ZTUNNELS") != NO_NUMBER
        unlike = "" if is_known == (row.state == READY) else f", ztunnels {cells.get('ZTUNNELS')}"
        found.append(row._replace(state=row.state + unlike))
    return found


def ztunnels_of(text: str) -> list[tuple[str, str, str]]:
    """(pid, phase, number of workloads) of each line of the table of `pyztun-cni status`."""
    lines = text.splitlines()
    begin = next((n for n, line in enumerate(lines) if line.startswith("ZTUNNEL ")), len(lines))
    return [
        (cells.get("PID", ""), cells.get("PHASE", ""), cells.get("KNOWS", ""))
        for cells in _table(lines[begin:])
    ]


def _table(lines: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table whose columns are two spaces apart at least, by the titles on top."""
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith(" "):  # the last cell goes on
            rows[-1][-1] += f" {line.strip()}"
        elif line:
            rows.append(re.split(r" {2,}", line))
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
