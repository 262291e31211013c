"""A raw client of the agent's control API: HTTP over a Unix socket, one connection."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import Any

from bench import programs


class Control(http.client.HTTPConnection):
    """A connection that stays open; closed by its with-block.

    :param path: of the agent's control socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=programs.PATIENCE)
        self._path = path

    def connect(self) -> None:
        """As HTTPConnection has it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(programs.PATIENCE)
        self.sock.connect(self._path)

    def ask(self, method: str, target: str, body: bytes | None = None) -> bytes:
        """One request; the body of its answer. BenchError unless that is a 200."""
        try:
            self.request(method, target, body)
            answer = self.getresponse()
            said = answer.read()
        except (http.client.HTTPException, OSError) as error:
            raise programs.BenchError(f"{method} {target}: {error!r}") from error
        if answer.status != 200:
            text = said.decode(errors="replace").strip()
            raise programs.BenchError(f"{method} {target}: {answer.status} {text}")
        return said

    def status(self) -> Any:
        """The agent's status."""
        return json.loads(self.ask("GET", "/v1/status"))

    def prove_all_ready(self, number: int) -> None:
        """BenchError unless there are so many workloads, all of them served."""
        shown = json.loads(self.ask("GET", "/v1/workloads"))["workloads"]
        ready = sum(each["state"] == "ready" for each in shown)
        if not ready == len(shown) == number:
            raise programs.BenchError(f"of {len(shown)} workloads {ready} are ready, not {number}")

    def add(self, uid: str, pod: int) -> None:
        """Returns when the newest ztunnel serves it.

        :param pod: netns (borrowed); its name to the agent is that of our descriptor.
        """
        netns = f"/proc/{os.getpid()}/fd/{pod}"
        wanted = {"uid": uid, "netns": netns, "capture": "none"}
        self.ask("POST", "/v1/workloads", json.dumps(wanted).encode())

    def delete(self, uid: str) -> None:
        """Returns when every ztunnel has let go of it."""
        self.ask("DELETE", f"/v1/workloads/{uid}")

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
