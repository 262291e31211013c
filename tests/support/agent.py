"""`pyztun-cni agent` as a process, and its control socket seen from outside.

HTTP by the standard library: no code of the program is used here.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from support.pods import Pod
from support.programs import Daemon, program

Json = dict[str, Any]
Start = Callable[..., Daemon]
AT_ONCE = 10.0
"""Seconds that anything takes at most; a second where an issue says so."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("agent", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Reply(NamedTuple):
    """What the agent said.

    :ivar status: of HTTP.
    """

    status: int
    body: Json

    @property
    def error(self) -> str:
        """The word for machines; empty where all is well."""
        return str(self.body.get("error", ""))

    @property
    def reason(self) -> str:
        """The line for people."""
        return str(self.body.get("reason", ""))


def reference(netns: Pod | str) -> str:
    """What names it: a pod has a path."""
    return netns if isinstance(netns, str) else f"/run/netns/{netns.name}"


class Agent:
    """An agent of its own directory; `begin` starts it, and again after an end."""

    def __init__(self, directory: Path, start: Start) -> None:
        self._start, self.directory = start, directory
        self.zds, self.control = str(directory / "zds.sock"), str(directory / "agent.sock")
        self.daemon: Daemon

    def begin(self, *options: str, command: Sequence[str] | None = None, **how: Any) -> Daemon:
        """Starts the agent and waits until it is ready.

        :param command: in place of `pyztun-cni agent`.
        """
        os.chmod(self.directory, 0o755)
        places = ("--zds", self.zds, "--control", self.control, "--state-dir", str(self.directory))
        base = [*program("pyztun-cni"), "agent"] if command is None else command
        self.daemon = self._start(*places, *options, command=base, **how)
        return self.daemon

    def again(self, *options: str) -> Daemon:
        """Kills it (SIGKILL) and starts it again."""
        self.daemon.kill()
        return self.begin(*options)

    def ask(self, method: str, path: str, body: Json | None = None, seconds: float = 30) -> Reply:
        """One request on a connection of its own."""
        connection = _Connection(self.control, seconds)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            return Reply(answer.status, content)
        finally:
            connection.close()

    def add(self, netns: Pod | str, **fields: Any) -> Reply:
        """Asks for a workload, without rules in it unless they are asked for."""
        body = {"netns": reference(netns), "capture": "none", **fields}
        return self.ask("POST", "/v1/workloads", body)

    def must_add(self, netns: Pod | str, **fields: Any) -> Json:
        """Asks for a workload and expects that it is ready."""
        reply = self.add(netns, **fields)
        assert reply.status == 200, reply
        assert reply.body["state"] == "ready"
        return reply.body

    def delete(self, key: str, timeout: float | None = None) -> Reply:
        """Ends one."""
        query = "" if timeout is None else f"?timeout={timeout}"
        return self.ask("DELETE", f"/v1/workloads/{quote(key, safe='')}{query}")

    def workloads(self) -> dict[str, Json]:
        """All, by uid."""
        reply = self.ask("GET", "/v1/workloads")
        assert reply.status == 200, reply
        return {each["uid"]: each for each in reply.body["workloads"]}

    def status(self) -> Json:
        """How it is."""
        reply = self.ask("GET", "/v1/status")
        assert reply.status == 200, reply
        return reply.body

    def wait_for(
        self, uid: str, state: str, reason: str = "", seconds: float = AT_ONCE, **fields: Any
    ) -> Json:
        """Waits for a state whose reason contains REASON, and for fields of that value."""
        return self.wait_until(
            lambda found: (
                found[uid]["state"] == state
                and reason in (found[uid]["reason"] or "")
                and all(found[uid][name] == value for name, value in fields.items())
            ),
            seconds,
        )[uid]

    def wait_until(
        self, holds: Callable[[dict[str, Json]], bool], seconds: float = AT_ONCE
    ) -> dict[str, Json]:
        """Asks for the workloads until something is true of them; AssertionError with the last."""
        deadline = time.monotonic() + seconds
        while not holds(found := self.workloads()):
            assert time.monotonic() < deadline, found
            os.sched_yield()
        return found

    def settled_fds(self) -> dict[int, str]:
        """The agent's descriptors between requests: what three looks in a row have found.

        A connection of ours is closed there a moment after it is closed here.
        """
        looks: list[dict[int, str]] = []
        for _ in range(1000):
            looks = [*looks[-2:], self.daemon.fds()]
            if looks[0] == looks[-1] and len(looks) == 3 and not self._has_caller(looks[0]):
                return looks[0]
            os.sched_yield()
        raise AssertionError(f"never settled: {looks}")

    def wait_for_fds(self, holds: Callable[[dict[int, str]], bool]) -> None:
        """Waits until something is true of its descriptors; AssertionError with the last."""
        deadline = time.monotonic() + AT_ONCE
        while not holds(found := self.daemon.fds()):
            assert time.monotonic() < deadline, found
            os.sched_yield()

    def _has_caller(self, fds: dict[int, str]) -> bool:
        """Whether a connection to the control socket is open: it has the name of the socket."""
        table = Path("/proc/net/unix").read_text().splitlines()
        named = [line.split()[6] for line in table if line.endswith(f" {self.control}")]
        return sum(f"socket:[{inode}]" in fds.values() for inode in named) > 1

    def wait_for_ztunnels(self, count: int, seconds: float = AT_ONCE) -> list[Json]:
        """Waits until so many are connected and have their snapshot."""
        deadline = time.monotonic() + seconds
        while True:
            found: list[Json] = self.status()["ztunnels"]
            if [each["phase"] for each in found] == ["steady"] * count:
                return found
            assert time.monotonic() < deadline, found
            os.sched_yield()
