"""What the tests of capture share: podside as a child, what is in a pod, and traffic."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from pyztun import NetNs
from pyztun.channel import Channel
from pyztun.cni.capture import wire
from pyztun.cni.capture.rules import MARK, RULE_PRIORITY
from pyztun.errors import TimedOut
from pyztun.fds import OwnedFd
from pyztun.testing import Pod
from support import pods
from support.nftables import run_nft

SECONDS = 10.0
ALL = ("rules", "ipv4 routes", "ipv6 routes")


class Side:
    """A podside, and the agent's end of its channel."""

    def __init__(self, *prefix: str, code: str | None = None) -> None:
        """:param code: what runs in place of the module."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            what = ["-m", "pyztun.cni.capture.podside"] if code is None else ["-c", code]
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *what, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        self.channel = Channel(OwnedFd(ours.detach()), "podside")
        self.asked = 0
        self.notices: list[wire.Reply] = []

    def send(self, do: str, netns: NetNs, key: int | None = None) -> int:
        """Sends a request and returns its number; key: the inode, as the agent does."""
        self.asked += 1
        request = wire.Request(self.asked, do, netns.inode if key is None else key)
        fds = [netns.fileno()] * wire.FDS[do]
        self.channel.send(wire.encode_request(request), fds, SECONDS)
        return self.asked

    def receive(self, seconds: float = SECONDS) -> wire.Reply:
        """The next message, answer or notice."""
        message, fds = self.channel.receive(wire.MAX_MESSAGE, 0, seconds)
        assert message, self.end()
        assert not fds
        return wire.decode_reply(message)

    def ask(self, do: str, netns: NetNs, key: int | None = None) -> wire.Reply:
        """The answer to a request; notices that come before it are kept."""
        number = self.send(do, netns, key)
        while True:
            reply = self.receive()
            if isinstance(reply, wire.Done | wire.Failed):
                assert reply.id == number
                return reply
            self.notices.append(reply)

    def done(self, do: str, netns: NetNs, key: int | None = None) -> wire.Done:
        """The answer to a request that succeeds."""
        reply = self.ask(do, netns, key)
        assert isinstance(reply, wire.Done), reply
        return reply

    def failed(self, do: str, netns: NetNs, key: int | None = None) -> str:
        """Why a request was refused."""
        reply = self.ask(do, netns, key)
        assert isinstance(reply, wire.Failed), reply
        return reply.error

    def notice(self, seconds: float = SECONDS) -> wire.Reply:
        """The next notice."""
        return self.notices.pop(0) if self.notices else self.receive(seconds)

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing is said for so long."""
        try:
            self.notices.append(self.receive(seconds))
        except TimedOut:
            return not self.notices
        return False

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """podside sleeps for the length of a with-block."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """Closes the agent's end; exit code and what podside said at its end."""
        self.channel.close()
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said.decode()

    def __enter__(self) -> "Side":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.end()
        finally:
            if self.process.poll() is None:
                self.kill()


# ---- what is in a pod --------------------------------------------------------------------------


def run(netns: NetNs, *argv: str) -> str:
    """A command run in a pod, which succeeds; what it printed."""

    def go() -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout

    return pods.in_netns(netns.fileno(), go)


def words(netns: NetNs, line: str) -> str:
    """The same, of a line."""
    return run(netns, *line.split())


def routing(netns: NetNs) -> tuple[str, ...]:
    """`ip rule` and table 100, both families."""
    lines = []
    for family in ("-4", "-6"):
        lines.append(words(netns, f"ip {family} rule"))
        lines.append(words(netns, f"ip {family} route show table all"))
    return tuple(lines)


def is_whole(netns: NetNs) -> bool:
    """Whether rules and routes of both families are there, as `ip` and `nft` show them."""
    listed = run_nft(netns, "list ruleset\n")
    rules = [words(netns, f"ip {family} rule") for family in ("-4", "-6")]
    routes = [words(netns, f"ip {family} route show table all") for family in ("-4", "-6")]
    return (
        listed.count("hook ") >= 9
        and "chain settled" in listed
        and all(f"{RULE_PRIORITY}:\tfrom all fwmark 0x111/0xfff lookup 100" in r for r in rules)
        and all("local default dev lo table 100" in r for r in routes)
    )


def eventually(holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Asks again and again until it holds, or the time is over."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def set_sysctl(netns: NetNs, name: str, value: str) -> None:
    """Writes /proc/sys in a pod."""

    def write() -> None:
        with open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:
            file.write(value)

    pods.in_netns(netns.fileno(), write)


# ---- traffic -----------------------------------------------------------------------------------


def listening(netns: NetNs, address: str, port: int, mark: int = 0) -> socket.socket:
    """A listener in a pod, on which nobody waits for ever; the caller closes it."""
    (listener,) = netns.listen((address, port), mark=mark)
    listener.settimeout(SECONDS)
    return listener


def accept(listener: socket.socket) -> tuple[socket.socket, str, int]:
    """The next connection, with the address and the port of its client."""
    sock, (host, port, *_) = listener.accept()
    sock.settimeout(SECONDS)
    return sock, host, port


@contextmanager
def joined(
    client: NetNs,
    server: NetNs,
    address: str,
    port: int = 80,
    source: tuple[str, int] | None = None,
    mark: int = 0,
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from one pod to another, which carries bytes both ways."""
    with (
        listening(server, address, port) as listener,
        client.connect((address, port), SECONDS, source, mark) as one,
    ):
        other, _, _ = accept(listener)
        with other:
            assert carries(one, other)
            yield one, other


def carries(one: socket.socket, other: socket.socket) -> bool:
    """Whether a byte arrives in each direction."""
    one.sendall(b"a")
    other.sendall(b"b")
    return (other.recv(1), one.recv(1)) == (b"a", b"b")


def is_cut(sender: socket.socket) -> bool:
    """Whether a connection is reset once something is sent on it: nothing comes back."""
    sender.settimeout(SECONDS)
    try:
        sender.sendall(b"plain text")
        return not sender.recv(1)
    except (ConnectionResetError, BrokenPipeError):
        return True


def is_refused(client: NetNs, address: str, port: int = 80) -> bool:
    """Whether a connection is refused at once."""
    try:
        client.connect((address, port), timeout=SECONDS).close()
    except ConnectionRefusedError:
        return True
    return False


def family_of(pod: Pod, family: int) -> str:
    """The address of a pod: 4 or 6."""
    return pod.ipv4 if family == 4 else pod.ipv6


def original_destination(sock: socket.socket) -> tuple[str, int]:
    """Where a redirected connection was going: SO_ORIGINAL_DST."""
    if sock.family == socket.AF_INET:
        raw = sock.getsockopt(socket.SOL_IP, 80, 16)
        return socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big")
    raw = sock.getsockopt(socket.IPPROTO_IPV6, 80, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big")


def connect_as(
    netns: NetNs, source: tuple[str, int], target: tuple[str, int], seconds: float = SECONDS
) -> socket.socket:
    """A connection as ztunnel makes it to the application: the client's address, and the mark."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    sock = netns.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
        else:
            sock.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(seconds)
        sock.bind(source)
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def ticks(side: Side) -> int:
    """CPU time of podside, user and system, in hundredths of a second."""
    with open(f"/proc/{side.process.pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
