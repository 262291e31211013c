"""What the demo of the ZDS form does and looks at; the words around it are in zds_script.py."""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.tools import drawings, evidence
from pyztun.tools.checks import CLOSED_PORT, PORTS, listed
from pyztun.tools.node_checks import GONE, NO_ZTUNNEL, READY, UIDS
from pyztun.tools.node_stage import JSON_LOG
from pyztun.tools.node_story import NodeStory
from pyztun.tools.zds_checks import RESET, ZdsChecks

if TYPE_CHECKING:
    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod
    from pyztun.tools.terminal import Terminal
    from pyztun.tools.zds_stage import ZdsStage


class ZdsStory(NodeStory):
    """The steps, each a method; they build on each other in the order of the script."""

    _stage: ZdsStage
    _see: ZdsChecks

    def __init__(self, stage: ZdsStage, terminal: Terminal, observations: Observations) -> None:
        self._see = ZdsChecks(stage, terminal, observations)
        super().__init__(stage, terminal, observations)

    def three_pods(self) -> None:
        stage = self._stage
        cookies = [stage.home.cookie, *(pod.cookie for pod in stage.pods)]
        self._check("four different netns", len(set(cookies)) == len(cookies), listed(cookies))
        for pod in stage.pods:
            self._see.no_listener(pod, evidence.look_inside(pod.reference))
        pods = [(pod.name, pod.cookie) for pod in stage.pods]
        self._terminal.drawing(drawings.node(stage.home.cookie, pods))
        self._terminal.command(["export", f"PYZTUN_CONTROL={stage.control}"])
        self._start_agent()
        self._see.list_is(READY)
        self._see.agent_holds([])

    def ztunnel_dials(self) -> None:
        self._start_ztunnel(*JSON_LOG)
        event = self._stage.ztunnel.wait_for_event("snapshot")
        count = event["workloads"]
        self._check("the snapshot that ztunnel got", count == 0, f"{count} workloads")
        self._see.ztunnel_is_known(0)

    def pods_are_added(self) -> None:
        web, db = self._stage.web, self._stage.db
        self._add(web)
        self._add(db)
        self._see.list_is(READY, web, db)
        self._see.agent_holds([web, db])
        self._see.ztunnel_holds([web, db])

    def listeners_are_in_the_pods(self) -> None:
        stage = self._stage
        rows = [
            (f"  {fd}", f"{pod.name:4} LISTEN {each}  (socket {each.socket})")
            for pod in (stage.web, stage.db)
            for each, fd in self._see.listeners(pod)
        ]
        self._see.no_process(stage.web)
        self._see.threads_at_home()
        self._terminal.drawing(
            drawings.tied(
                f"home, netns {stage.home.cookie}",
                f"web, netns {stage.web.cookie}; db, netns {stage.db.cookie}",
                [(f"pyztun-ztunnel, pid {stage.ztunnel.pid}", ""), *rows],
            )
        )
        view = evidence.look_inside(stage.web.reference, (*PORTS, CLOSED_PORT))
        for port in PORTS:
            self._see.is_reset(view, port, stage.web)
        said = view.answers[CLOSED_PORT]
        self._check(f"127.0.0.1:{CLOSED_PORT} in web, where none is", said == "refused", said)
        self._see.clients_are_accepted(stage.db, PORTS[:1])
        self._see.nothing_is_left(stage.cache)

    def pod_restarts(self) -> None:
        began = monotonic()
        old = self._stage.replace("web")
        web, name = self._stage.web, os.path.basename(old.reference)
        self._see.served_within(began, "the old netns lost its name", [web])
        rows = [
            ("name", name, os.path.basename(web.reference)),
            ("uid", UIDS["web"], UIDS["web"]),
            ("cookie", old.cookie, web.cookie),
        ]
        self._terminal.drawing(drawings.table(("web", "before", "after"), rows))
        seen = f"{old.cookie}, {web.cookie}"
        self._check("the cookies are of two netns", old.cookie != web.cookie, seen)
        self._see.listeners(web)
        self._see.gone(old, "the old netns of web")
        self._see.list_is(READY, web, self._stage.db)

    def ztunnel_is_killed(self) -> None:
        stage = self._stage
        pods = [stage.web, stage.db]
        self._kill("ztunnel", stage.ztunnel)
        for pod in pods:
            self._see.nothing_is_left(pod)
        self._see.list_is(NO_ZTUNNEL, *pods)
        began = monotonic()
        self._start_ztunnel(*JSON_LOG)
        self._see.served_within(began, "its start", pods)
        count = stage.ztunnel.wait_for_event("snapshot")["workloads"]
        self._check("the snapshot that it got", count == len(pods), f"{count} workloads")
        self._see.list_is(READY, *pods)
        for pod in pods:
            self._see.listeners(pod)

    def agent_is_killed(self) -> None:
        stage = self._stage
        pods = [stage.web, stage.db]
        before = self._sockets(pods)
        self._kill("the agent", stage.agent)
        self._nobody_answers_for_it(pods)
        self._start_agent()
        loaded = stage.agent.wait_for_event("registry-loaded")
        same, all_of_them = loaded["same"], loaded["workloads"]
        self._check(
            "it found each netns again by its cookie",
            same == all_of_them == len(pods),
            f"{same} of {all_of_them} are the same",
        )
        self._see.list_is(READY, *pods)
        self._see.ztunnel_is_known(len(pods))
        after = self._sockets(pods)
        seen = f"{len(before & after)} of {len(before)} sockets"
        self._check("ztunnel listens with the same sockets as before", before == after, seen)
        self._add(stage.cache)
        self._see.list_is(READY, *stage.pods)
        self._see.clients_are_accepted(stage.cache, PORTS[:1])

    def _nobody_answers_for_it(self, pods: list[Pod]) -> None:
        """The command fails; while it runs, a client in each pod asks again and again."""
        said: list[str] = []

        def ask() -> None:
            said.extend(evidence.ask(pod.reference, PORTS[0]) for pod in pods)

        self._see.command("list", during=ask)
        status = self._see.done.status
        self._check("nobody answers for the agent", status == 1, f"exit status {status}")
        accepted = said.count(RESET)
        names = " and ".join(pod.name for pod in pods)
        self._check(
            f"clients in {names} are accepted meanwhile",
            accepted == len(said) > 0,
            f"{accepted} of {len(said)}",
        )

    def pod_is_deleted(self) -> None:
        stage = self._stage
        self._see.command("del", UIDS["web"])
        self._see.deleted(stage.web)
        self._see.nothing_is_left(stage.web)
        rest = [stage.db, stage.cache]
        for pod in rest:
            self._see.clients_are_accepted(pod, PORTS[:1])
        self._see.list_is(READY, *rest)
        self._see.agent_holds(rest)

    def all_ends(self) -> None:
        stage = self._stage
        pods = stage.pods
        stage.remove_pods()
        for pod in pods:
            self._see.gone(pod)
        self._see.list_is(GONE, stage.db, stage.cache)
        self._stop_both()

    def _add(self, pod: Pod) -> None:
        self._add_command(pod, "--capture", "none")
        self._see.added(pod)

    def _sockets(self, pods: list[Pod]) -> set[int]:
        views = [evidence.look_inside(pod.reference) for pod in pods]
        return {each.socket for view in views for each in view.listeners}
