"""EMFILE: the fd table is full at each point of each call in turn, and nothing is left behind.

The limit of this process is lowered so far that there is room for no descriptor, then for one, and
so on until the call succeeds. ENFILE, the table of the whole machine, is played in the C tests.
"""

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from pyztun import Channel, NetNs, OwnedFd, PyztunError, native
from support import leaks, pods, programs, wire, zt_daemon

pytestmark = pytest.mark.needs_netns
TOO_MANY = 40
SMALL = 1024
ADDRESSES = (("127.0.0.1", 15008), ("::1", 15006), ("127.0.0.1", 15001))


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Exactly COUNT more descriptors can be opened; every number below the limit is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(leaks.open_fds()) + TOO_MANY
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        fillers: list[int] = []
        with pytest.raises(OSError, match=f"Errno {errno.EMFILE}"):
            fillers.extend(iter(lambda: os.dup(2), None))
        for _ in range(count):
            os.close(fillers.pop())
        for filler in fillers:
            stack.callback(os.close, filler)
        yield


def until_it_works(call: Callable[[], object], close: Callable[[object], None]) -> int:
    """Calls with room for 0, 1, ... descriptors; returns how many it took at last."""
    for room in range(TOO_MANY):
        before = leaks.open_fds()
        error: OSError | None = None
        with room_for(room):
            try:
                result = call()
            except OSError as caught:
                error = caught
        if error is None:
            close(result)
            assert leaks.open_fds() == before
            return room
        assert error.errno == errno.EMFILE, f"with room for {room}: {error}"
        assert isinstance(error, PyztunError), f"with room for {room}: {error!r}"
        assert leaks.open_fds() == before, f"with room for {room}"
    raise AssertionError(f"room for {TOO_MANY} descriptors was not enough")


def close_all(result: object) -> None:
    assert isinstance(result, list)
    for each in result:
        each.close()


def close_one(result: object) -> None:
    assert isinstance(result, NetNs | OwnedFd | Channel | socket.socket)
    result.close()


@pytest.fixture
def pod() -> Iterator[NetNs]:
    with NetNs.create() as made:
        assert made.cookie > 0  # and the modules are loaded: an import needs descriptors too
        (listener,) = made.listen(("127.0.0.1", 0))
        with listener, made.connect(listener.getsockname()):
            yield made


def test_listen(pod: NetNs) -> None:
    assert until_it_works(lambda: pod.listen(*ADDRESSES), close_all) >= len(ADDRESSES)


def test_listen_from_a_worker(pod: NetNs) -> None:
    """It opens its home besides."""
    plan_size = len(ADDRESSES)

    def work() -> int:
        return until_it_works(lambda: pod.listen(*ADDRESSES), close_all)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() >= plan_size + 1


def test_socket_and_connect(pod: NetNs) -> None:
    # One for the socket, and one for what the call itself holds of the netns.
    assert until_it_works(lambda: pod.socket(socket.AF_NETLINK, socket.SOCK_RAW), close_one) == 2
    (listener,) = pod.listen(("127.0.0.1", 0))
    with listener:
        assert until_it_works(lambda: pod.connect(listener.getsockname(), 5), close_one) == 2


@pytest.mark.parametrize("way", ["open", "current", "fd", "create"])
def test_netns(pod: NetNs, way: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: NetNs.open(f"pid:{os.getpid()}"),
        "current": NetNs.current,
        "fd": lambda: NetNs.from_fd(pod.fileno()),
        "create": NetNs.create,
    }
    assert until_it_works(calls[way], close_one) >= 1


@pytest.mark.needs_named_netns
def test_create_with_a_name_leaves_no_name() -> None:
    name = pods.unique_name()

    def create() -> NetNs:
        try:
            return NetNs.create(name)
        except OSError:
            assert not os.path.lexists(f"/run/netns/{name}")
            raise

    def remove(made: object) -> None:
        assert isinstance(made, NetNs)
        made.remove()
        made.close()

    assert until_it_works(create, remove) >= 2


def test_connect_unix(directory: os.PathLike[str]) -> None:
    path = os.path.join(directory, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(TOO_MANY)
        assert until_it_works(lambda: Channel.connect(path, timeout=5), close_one) == 1


def test_receive_loses_the_message_and_no_descriptor() -> None:
    """Each failure closes what had come; the next message is received whole."""
    left, right = socket.socketpair()
    with left, right, NetNs.current() as home:

        def receive() -> list[OwnedFd]:
            native.send(left.fileno(), b"x", [home.fileno()] * 3)
            data, fds = native.receive(right.fileno(), 10, 3, timeout=5)
            assert data == b"x"
            assert len(fds) == 3
            return fds

        assert until_it_works(receive, close_all) == 3


# ---- the programs ------------------------------------------------------------------------------


LIMITED = """
import resource, sys
from pyztun import channel, netns
from pyztun.cni import arguments, main, oneshot, output
from pyztun.protocol import seed
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
del sys.argv[1]
sys.exit(main.main())
"""


@pytest.mark.needs_named_netns
def test_the_sender_says_what_is_missing(
    sock_path: str, start: Callable[..., programs.Daemon], make_pod: Callable[[], pods.Pod]
) -> None:
    """Its modules are loaded first: python itself needs more descriptors than the sender does."""
    start(sock_path)
    argv = [sys.executable, "-c", LIMITED]
    for failures, limit in enumerate(range(3, TOO_MANY)):
        done = subprocess.run(
            [*argv, str(limit), sock_path, make_pod().path],
            env=programs.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode == 0:
            assert failures >= 2  # the netns, the connection
            return
        assert done.returncode == 1
        assert "EMFILE" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    raise AssertionError(done.stderr)


def test_the_receiver_serves_again_when_there_is_room(
    sock_path: str, start: Callable[..., programs.Daemon]
) -> None:
    """Connections fill its table; who comes then is served, as the longest silent one goes."""
    daemon = start(sock_path, wrap=["prlimit", f"--nofile={SMALL}:{SMALL}"])
    before = zt_daemon.settled_fds(daemon, sock_path)
    with (
        zt_daemon.connections(sock_path, SMALL),
        NetNs.create() as pod,
        wire.Peer(sock_path) as peer,
    ):
        peer.send(wire.TAKE, [pod.fileno()])
        answer = peer.line()
        assert answer.startswith(("ready ", "error ")), answer
        zt_daemon.is_served(sock_path)
    zt_daemon.wait_until_fds_are(daemon, before if answer.startswith("error") else daemon.fds())
    assert "Traceback" not in "\n".join(daemon.stderr.all())
