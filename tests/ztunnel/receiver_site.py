"""A ZDS receiver in a thread of the test, over a wait that writes down what it is told."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter

from pyztun import NetNs, waits
from pyztun.service.log import Log
from pyztun.ztunnel.agent_link import AgentLink
from pyztun.ztunnel.answers import Responder
from pyztun.ztunnel.inpod import InPod
from pyztun.ztunnel.settings import InPodSettings
from pyztun.ztunnel.workloads import Workload, Workloads
from pyztun.ztunnel.zds_receiver import ZdsReceiver
from pyztun.ztunnel.zds_wait import ZdsWait
from support import zt_zds
from support.pods import Pod
from support.zt_zds import Agent, ports

ROOM = 4


class Watched(ZdsWait):
    """Writes down what is known, and what came of each Add."""

    def __init__(self) -> None:
        super().__init__()
        self.known: Counter[tuple[int, str]] = Counter()
        self.adds: list[int] = []

    def know(self, inode: int, uid: str = "") -> None:
        super().know(inode, uid)
        self.known[inode, uid] += 1

    def forget(self, inode: int, uid: str = "") -> None:
        super().forget(inode, uid)
        self.known[inode, uid] -= 1

    def next(self, sock: int, timeout: float | None, *, has_room: bool = False) -> int:
        event = super().next(sock, timeout, has_room=has_room)
        if event in (waits.ADD, waits.TAKEN):
            self.adds.append(event)
        return event


class Receiver:
    """A receiver that has dialled an agent and had an empty snapshot; it ends with the block."""

    def __init__(self, path: str, no_workload: Pod | None = None) -> None:
        self._stack = contextlib.ExitStack()
        with self._stack:
            self._open(path, no_workload)
            self._until_close = self._stack.pop_all()

    def _open(self, path: str, no_workload: Pod | None) -> None:
        self._agent = self._stack.enter_context(Agent(path))
        self.wait = Watched()
        self._stack.callback(self.wait.close)
        responder = Responder(max_connections=4, deadline=1)
        self._stack.callback(responder.close)
        self._workloads = Workloads(responder)
        self._stack.callback(self._workloads.drop_all)
        self._log = Log("test", "human")
        self._stack.callback(self._log.close)
        self._no_workload = {} if no_workload is None else {no_workload.inode: "home netns"}
        self._path = path
        thread = threading.Thread(target=self._run)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self.wait.end)
        self.link = self._agent.accept()
        assert self.link.snapshot_sent() == ""

    def _run(self) -> None:
        with NetNs.current() as home:
            ZdsReceiver(
                self.wait,
                AgentLink(self._path, {os.getuid()}, self._log, self.wait.hang_up),
                InPod(InPodSettings(), home.fileno(), self._log),
                self._workloads,
                self._log,
                home_fd=home.fileno(),
                not_workloads=self._no_workload,
                max_workloads=ROOM,
            ).run()

    def settle(self) -> None:
        """What follows an ACK has happened when the next message is answered."""
        assert self.link.delete("nobody") == ""

    def outcome(self, uid: str, netns: Pod) -> tuple[int, str]:
        """ADD or TAKEN, and the answer: "" is an ACK."""
        answer = self.link.add(uid, netns)
        self.settle()
        return self.wait.adds[-1], answer

    def takes(self, uid: str, netns: Pod) -> bool:
        """Asks for a workload, which is then served; whether it was taken."""
        event, answer = self.outcome(uid, netns)
        assert answer == ""
        assert ports(netns) == zt_zds.PORTS
        return event == waits.TAKEN

    def knows(self, *workloads: tuple[str, Pod]) -> bool:
        """Whether these are known, and what is no workload, and nobody else."""
        self.settle()
        served = Counter((pod.inode, uid) for uid, pod in workloads)
        never = Counter((inode, "") for inode in self._no_workload)
        return +self.wait.known == served + never and not -self.wait.known

    def served(self, netns: Pod) -> Workload:
        """What is served there."""
        self.settle()
        return self._workloads.by_inode[netns.inode]

    def destroy(self, netns: Pod, index: int) -> int:
        """Makes one of its listeners none, as root in the pod may by `ss -K`; its descriptor."""
        fd = self.served(netns).listeners[index]
        with socket.socket(fileno=os.dup(fd)) as listener:
            listener.shutdown(socket.SHUT_RDWR)
        return fd

    def reconnect(self) -> None:
        self.link.close()
        self.link = self._agent.accept()

    def close(self) -> None:
        self._until_close.close()
