"""A podside that a test plays: it gets the agent's requests, and answers or dies as it likes.

Written from the description of the messages alone; no code of the program is used here.
"""

import json
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from support import REPOSITORY
from support.agent import Reply
from support.pods import Pod

PROGRAM = REPOSITORY / "tests" / "support" / "agent_scripted.py"
SECONDS = 10.0
Json = dict[str, Any]


class Asked:
    """A request of the agent.

    :ivar inode: of the netns that came with it; None if none did.
    """

    def __init__(self, said: Json, inode: int | None) -> None:
        self.id, self.do, self.key = int(said["id"]), str(said["do"]), int(said["key"])
        self.inode = inode


class Life:
    """One process that the agent has started as podside. Its end is the test's to decide."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("iII", raw)[0]
        self._process = os.pidfd_open(self.pid)
        connection.settimeout(SECONDS)
        _, (fd, *_), _, _ = socket.recv_fds(connection, 1, 1)
        self._channel = socket.socket(fileno=fd)
        self._channel.settimeout(SECONDS)

    def request(self, seconds: float = SECONDS) -> Asked:
        """The next request. TimeoutError; EOFError once the agent has closed its end."""
        self._channel.settimeout(seconds)
        data, fds, _, _ = socket.recv_fds(self._channel, 4096, 4)
        if not data:
            raise EOFError
        inodes = [os.fstat(fd).st_ino for fd in fds]
        for fd in fds:
            os.close(fd)
        said = json.loads(data)
        assert set(said) == {"id", "do", "key"}
        assert len(inodes) == (said["do"] != "forget")
        return Asked(said, inodes[0] if inodes else None)

    def expect(self, do: str, seconds: float = SECONDS) -> Asked:
        """The next request, which is of that kind."""
        asked = self.request(seconds)
        assert asked.do == do, asked.do
        return asked

    def say(self, what: Json | bytes) -> None:
        """Sends a message, whatever it is."""
        self._channel.send(what if isinstance(what, bytes) else json.dumps(what).encode())

    def done(self, asked: Asked, *written: str, without: Sequence[str] = ()) -> None:
        """Answers that it is done."""
        done = {"written": written, "flushed": bool(written), "without": list(without)}
        self.say({"id": asked.id, "done": done})

    def error(self, asked: Asked, why: str) -> None:
        """Answers that it cannot be done."""
        self.say({"id": asked.id, "error": why})

    def serve(self, do: str, *written: str) -> Asked:
        """Takes a request of that kind and does it."""
        asked = self.expect(do)
        self.done(asked, *written)
        return asked

    def serve_until_quiet(self, seconds: float = 0.3) -> list[Asked]:
        """Takes and does what comes, until nothing came for a while."""
        served: list[Asked] = []
        while True:
            try:
                asked = self.request(seconds)
            except TimeoutError:
                return served
            self.done(asked)
            served.append(asked)

    def die(self, status: int = 0) -> None:
        """Ends the process."""
        self._connection.send(bytes([status]))
        self.wait()

    def wait(self, seconds: float = SECONDS) -> None:
        """Waits until it has ended."""
        ended, _, _ = select.select([self._process], [], [], seconds)
        assert ended, f"podside {self.pid} does not end"

    def close(self) -> None:
        self._channel.close()
        self._connection.close()
        os.close(self._process)


class ScriptedPodside:
    """A with-block: every podside that an agent begun with `command` starts comes here."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / "podside.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(64)
        self._lives: list[Life] = []

    def command(self, deadline: float = 10) -> list[str]:
        """In place of `pyztun-cni agent`.

        :param deadline: seconds that the agent gives each request.
        """
        return [sys.executable, str(PROGRAM), self._path, str(deadline)]

    def life(self, seconds: float = SECONDS) -> Life:
        """The next one that is started. TimeoutError."""
        self._listener.settimeout(seconds)
        connection, _ = self._listener.accept()
        self._lives.append(Life(connection))
        return self._lives[-1]

    def __enter__(self) -> "ScriptedPodside":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        for life in self._lives:
            life.close()


Add = Callable[..., "Future[Reply]"]


def captured(add: Add, podside: ScriptedPodside, pod: Pod) -> Life:
    """The podside of an agent with one workload that is ready."""
    adding = add(pod)
    life = podside.life()
    life.serve("capture", "rules")
    assert adding.result(10).status == 200
    return life
