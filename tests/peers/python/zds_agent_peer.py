"""A node agent as ZDS describes it, driven by lines: judges a ztunnel.

    python zds_agent_peer.py SOCKET

Each line on stdin is a command, each has one line of JSON on stdout:

    accept                      the next ztunnel, and its Hello; it has the next number, from 0
    add UID NETNS [NAME [NAMESPACE [SERVICE_ACCOUNT]]]      NETNS is the path of a namespace file
    keep UID | del UID | sent
    raw HEX [PATH...]           any bytes, with descriptors of these files
    read                        the answer to something that was sent without waiting
    quiet SECONDS               whether nothing comes, not even the end
    eof                         whether the other end closes
    close                       this end closes
    quit

`!add ...` sends without reading the answer. `@0 add ...` is for the ztunnel with that number; by
default it is the last that was accepted. As in Istio's agent: a packet has at most 1024 bytes, an
answer comes within 5 seconds and brings no descriptors, and whatever it says else is an error.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import zds_wire as wire

DEADLINE = 5.0

Said = dict[str, Any]


class Peer:
    def __init__(self, path: str) -> None:
        if os.path.exists(path):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(16)
        self.listener.settimeout(20)
        self.ztunnels: list[socket.socket] = []

    def run(self, line: str) -> Said:
        words = line.split()
        which = -1
        if words and words[0].startswith("@"):
            which = int(words.pop(0)[1:])
        name, *arguments = words
        waits = not name.startswith("!")
        name = name.lstrip("!")
        if name == "accept":
            return self.accept()
        sock = self.ztunnels[which]
        command: Callable[..., Said] | None = getattr(self, f"do_{name}", None)
        if command is not None:
            return command(sock, *arguments)
        message, paths = self.message(name, arguments)
        started = time.monotonic()
        send(sock, message, paths)
        return self.do_read(sock, started) if waits else {"sent": name}

    def accept(self) -> Said:
        sock, _ = self.listener.accept()
        sock.settimeout(DEADLINE)
        self.ztunnels.append(sock)
        hello = packet(sock)
        return {"accepted": len(self.ztunnels) - 1, "hello": wire.read_hello(hello)}

    @staticmethod
    def message(name: str, words: list[str]) -> tuple[bytes, list[str]]:
        """The bytes, and the paths of what goes along."""
        if name == "add":
            uid, netns, *rest = words
            texts = [*rest, *("workload", "default", "default")[len(rest) :]]
            return wire.add(uid, *texts), [netns]
        if name == "raw":
            return bytes.fromhex(words[0]), words[1:]
        simple: dict[str, Callable[..., bytes]] = {
            "keep": wire.keep,
            "del": wire.delete,
            "sent": lambda: wire.SNAPSHOT_SENT,
        }
        return simple[name](*words), []

    def do_read(self, sock: socket.socket, started: float | None = None) -> Said:
        error = wire.read_response(packet(sock))
        answer: Said = {"ack": not error, "error": error}
        if started is not None:
            answer["seconds"] = round(time.monotonic() - started, 6)
        return answer

    def do_quiet(self, sock: socket.socket, seconds: str) -> Said:
        sock.settimeout(float(seconds))
        try:
            data, fds, _ = wire.receive(sock)
        except TimeoutError:
            return {"quiet": True}
        except ConnectionError as error:
            return {"quiet": False, "came": type(error).__name__}
        finally:
            sock.settimeout(DEADLINE)
        close_all(fds)
        return {"quiet": False, "came": data.hex()}

    def do_eof(self, sock: socket.socket) -> Said:
        try:
            data, fds, _ = wire.receive(sock)
        except ConnectionResetError:
            return {"eof": True}
        close_all(fds)
        return {"eof": not data, "came": data.hex()}

    def do_close(self, sock: socket.socket) -> Said:
        sock.close()
        return {"closed": True}


def send(sock: socket.socket, message: bytes, paths: list[str]) -> None:
    fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    try:
        if fds:
            socket.send_fds(sock, [message], fds)
        else:
            sock.send(message)
    finally:
        close_all(fds)


def packet(sock: socket.socket) -> bytes:
    """One packet as an answer may be."""
    data, fds, flags = wire.receive(sock)
    close_all(fds)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise wire.WireError("a truncated packet")
    if fds:
        raise wire.WireError("descriptors where none belongs")
    if not data:
        raise wire.WireError("the end of the connection")
    return data


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def main() -> None:
    peer = Peer(sys.argv[1])
    wire.say(listening=sys.argv[1])
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        try:
            wire.say(**peer.run(line))
        except (OSError, wire.WireError) as error:
            wire.say(failed=str(error) or type(error).__name__, kind=type(error).__name__)


if __name__ == "__main__":
    main()
