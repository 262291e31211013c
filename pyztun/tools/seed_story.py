"""What the demo of the seed form does and looks at; the words around it are in seed_script.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyztun.tools import drawings, evidence, processes
from pyztun.tools.checks import CLOSED_PORT, PORTS, listed
from pyztun.tools.seed_checks import SeedChecks

if TYPE_CHECKING:
    from pyztun.tools.observations import Observations
    from pyztun.tools.seed_stage import Handoff, SeedStage
    from pyztun.tools.stage import Pod
    from pyztun.tools.terminal import Terminal


class SeedStory:
    """The steps, each a method; they build on each other in the order of the script."""

    def __init__(self, stage: SeedStage, terminal: Terminal, observations: Observations) -> None:
        self._stage, self._terminal, self._observations = stage, terminal, observations
        self._check = observations.check
        self._see = SeedChecks(stage, observations)
        self._first_handoff: Handoff

    def two_pods(self) -> None:
        home, pods = self._stage.home, self._stage.pods
        cookies = [home.cookie, *(pod.cookie for pod in pods)]
        self._check("three different netns", len(set(cookies)) == len(cookies), listed(cookies))
        for pod in pods:
            self._see.no_process(pod)
            self._see.no_listener(pod, evidence.look_inside(pod.reference))
        self._terminal.drawing(drawings.cast(home.cookie, [(pod.name, pod.cookie) for pod in pods]))

    def ztunnel_starts(self) -> None:
        self._stage.start_ztunnel()
        ztunnel, home = self._stage.ztunnel, self._stage.home.cookie
        self._terminal.command(ztunnel.words)
        said = ztunnel.wait_ready()
        self._check(f"ztunnel, pid {ztunnel.pid}, reports", said == "READY=1", said)
        where = evidence.cookie_of_process(ztunnel.pid)
        self._check("ztunnel is at home", where == home, f"its netns has cookie {where}")
        self._see.no_netns_held()

    def netns_travels(self) -> None:
        web = self._stage.web
        self._first_handoff = handoff = self._hand_over(web)
        sent = self._see.sent_fd(handoff.done)
        self._see.answer(handoff.done, web)
        self._observations.end_of_step()
        received = self._see.received_fd(handoff.done, web)
        self._terminal.drawing(
            drawings.passing(
                f"pyztun-cni, pid {handoff.done.pid}",
                sent,
                f"pyztun-ztunnel, pid {self._stage.ztunnel.pid}",
                received,
                f"web, netns {web.cookie}",
            )
        )

    def process_stays_at_home(self) -> None:
        home, handoff = self._stage.home.cookie, self._first_handoff
        reads = [handoff.before, *handoff.during, handoff.after]
        rows = [
            (
                name,
                handoff.before[column],
                listed({each[column] for each in handoff.during}),
                handoff.after[column],
            )
            for column, name in enumerate(("web", "home", "ztunnel"))
        ]
        self._terminal.drawing(drawings.table(("cookie of", "before", "during", "after"), rows))
        same = {(each.pod, each.home) for each in reads} == {(self._stage.web.cookie, home)}
        seen = f"one pair of cookies in {len(reads)} reads" if same else "their cookies changed"
        self._check("web and home are the same as ever", same, seen)
        where = {each.ztunnel for each in reads}
        seen = f"cookie {listed(where)} in {len(reads)} reads"
        self._check("ztunnel was at home all the time", where == {home}, seen)
        self._see.threads_at_home()

    def listeners_are_in_the_pod(self) -> None:
        stage = self._stage
        rows = [
            (f"  {fd}", f"LISTEN {each}  (socket {each.socket})")
            for each, fd in self._see.listeners(stage.web)
        ]
        self._see.no_process(stage.web)
        self._terminal.drawing(
            drawings.tied(
                f"home, netns {stage.home.cookie}",
                f"web, netns {stage.web.cookie}",
                [(f"pyztun-ztunnel, pid {stage.ztunnel.pid}", ""), *rows],
            )
        )

    def pod_is_answered(self) -> None:
        web = self._stage.web
        view = evidence.look_inside(web.reference, (*PORTS, CLOSED_PORT))
        inside = view.cookie == web.cookie
        self._check(f"the client, pid {view.pid}, is in web", inside, f"cookie {view.cookie}")
        for port in PORTS:
            self._see.says_ok(view, port, web)
        said = view.answers[CLOSED_PORT]
        self._check(f"127.0.0.1:{CLOSED_PORT} in web, where none is", said == "refused", said)

    def second_pod(self) -> None:
        db = self._stage.db
        self._see.answer(self._hand_over(db).done, db)
        self._see.listeners(db)
        self._see.says_ok(evidence.look_inside(db.reference, PORTS[:1]), PORTS[0], db)
        self._see.list_names(self._stage.pods)
        self._see.no_netns_held()
        self._see.threads_at_home()

    def release(self) -> None:
        web = self._stage.web
        self._release(web.reference, web)
        self._see.nothing_is_left(web)
        self._see.list_names([self._stage.db])

    def netns_die(self) -> None:
        web, db = self._stage.pods
        # db first: if nothing held it any more, its end would be reported before that of web.
        db.netns.close()
        web.netns.close()
        self._see.gone(web)
        self._see.list_names([db])
        lives = self._stage.is_listed(db) and not self._stage.is_gone(db)
        self._check("db lives on", lives, "the kernel lists it" if lives else "it is gone")
        self._release(f"cookie:{db.cookie}", db)
        self._see.gone(db)
        self._ztunnel_ends()

    def _ztunnel_ends(self) -> None:
        ztunnel = self._stage.ztunnel
        status = ztunnel.stop()
        self._check("ztunnel ends on SIGTERM", status == 0, f"exit status {status}")
        left = os.path.lexists(self._stage.socket_path)
        self._check("it removes its socket file", not left, "still there" if left else "")

    def _hand_over(self, pod: Pod) -> Handoff:
        words = self._stage.cni_words("--verbose", pod.reference)
        self._terminal.command(words)
        return self._stage.hand_over(words, pod)

    def _release(self, reference: str, pod: Pod) -> None:
        words = self._stage.cni_words("--release", reference)
        self._terminal.command(words)
        self._see.released(processes.run(words), pod)
