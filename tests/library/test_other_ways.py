"""What other ways to a socket in another netns get wrong: the table of docs/library.md, shown.

Each test does what people do, sees it go wrong, and sees pyztun not do so. A thread that moves is
made for it and ends with the test; the main thread moves in a child process alone.
"""

import asyncio
import ctypes
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyztun import NetNs, NetnsGone, listen, socket_netns, start_server
from support import pods
from support.zt_child import run_code

CLONE_NEWNET = 0x40000000
HERE = "/proc/thread-self/ns/net"
libc = ctypes.CDLL(None)  # as in the recipes: without use_errno

pytestmark = pytest.mark.needs_netns

SETNS: list[Callable[[int], object]] = [lambda fd: libc.setns(fd, CLONE_NEWNET)]
if hasattr(os, "setns"):
    SETNS.append(lambda fd: getattr(os, "setns")(fd, CLONE_NEWNET))  # noqa: B009 (3.12 and later)
WAYS = ["ctypes", "os.setns"][: len(SETNS)]
each_setns = pytest.mark.parametrize("setns", SETNS, ids=WAYS)


def here() -> int:
    """The inode of the netns of the calling thread."""
    return os.stat(HERE).st_ino


def python(code: str, *words: str, pass_fds: tuple[int, ...] = ()) -> str:
    """Runs CODE in a child process, whose main thread may move; its stdout, stripped."""
    done = run_code(code, *words, pass_fds=pass_fds)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ctypes_does_not_notice_a_refusal(netns: NetNs) -> None:
    """A descriptor that is no netns stands for any refusal: EPERM would pass as silently."""
    home = here()

    def recipe() -> socket.socket:
        with open("/dev/null") as typo:
            libc.setns(typo.fileno(), 0)
            return socket.create_server(("127.0.0.1", 0))

    with recipe() as made, socket_netns(made) as where:
        assert where.inode == home, "it listens at home, and nobody was told"
    with open("/dev/null") as typo, pytest.raises(OSError, match="not a network namespace"):
        listen(("127.0.0.1", 0), netns=typo.fileno())


OBSERVED = """
import ctypes, os, socket, sys
from pyztun import NetNs
pod = int(sys.argv[1])
seen = []
class Watched(socket.socket):
    def bind(self, address):
        seen.append(os.stat(f"/proc/{os.getpid()}/ns/net").st_ino)
        super().bind(address)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
def setns(fd):
    if sys.argv[2] == "ctypes":
        ctypes.CDLL(None).setns(fd, 0)
    else:
        os.setns(fd, 0)
setns(pod)
with Watched() as made:
    made.bind(("127.0.0.1", 0))
setns(home)
assert os.stat("/proc/self/ns/net").st_ino == os.fstat(home).st_ino
print(seen[0] == os.fstat(pod).st_ino)
"""

NOT_OBSERVED = """
import os, sys, threading
from pyztun import NetNs
home = os.stat("/proc/self/ns/net").st_ino
seen, done = set(), threading.Event()
def watch():
    while not done.is_set():
        seen.add(os.stat(f"/proc/{os.getpid()}/ns/net").st_ino)
watcher = threading.Thread(target=watch)
watcher.start()
with NetNs.from_fd(int(sys.argv[1])) as pod:
    for _ in range(300):
        pod.listen(("127.0.0.1", 0))[0].close()
done.set()
watcher.join()
print(seen == {home})
"""


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_process_seems_to_be_in_the_pod(netns: NetNs, way: str) -> None:
    number = netns.fileno()
    assert python(OBSERVED, str(number), way, pass_fds=(number,)) == "True"
    assert python(NOT_OBSERVED, str(number), pass_fds=(number,)) == "True"


@each_setns
def test_a_thread_born_there_stays_there(netns: NetNs, setns: Callable[[int], object]) -> None:
    home, pod = here(), netns.inode
    seen = []

    def recipe() -> None:
        back = os.open(HERE, os.O_RDONLY)
        setns(netns.fileno())
        with ThreadPoolExecutor(1) as executor:
            executor.submit(here).result()
            setns(back)
            seen.extend([here(), executor.submit(here).result()])
        os.close(back)

    pods.in_thread(recipe)
    assert seen == [home, pod], "we are back, the executor is not"

    async def with_pyztun() -> int:
        server = await start_server(lambda *_: None, "localhost", 0, netns=netns)
        server.close()
        return await asyncio.get_running_loop().run_in_executor(None, here)

    assert asyncio.run(with_pyztun()) == home


@each_setns
def test_an_exception_leaves_the_thread_there(netns: NetNs, setns: Callable[[int], object]) -> None:
    home, pod = here(), netns.inode
    (taken,) = netns.listen(("127.0.0.1", 0))
    seen = []

    def recipe() -> None:
        back = os.open(HERE, os.O_RDONLY)
        try:
            setns(netns.fileno())
            socket.create_server(taken.getsockname())
            setns(back)
        except OSError:
            seen.append(here())
        finally:
            os.close(back)

    def with_pyztun() -> None:
        with pytest.raises(OSError, match="EADDRINUSE"):
            netns.listen(taken.getsockname())
        seen.append(here())

    pods.in_thread(recipe)
    pods.in_thread(with_pyztun)
    taken.close()
    assert seen == [pod, home]


@each_setns
def test_the_usual_home_is_the_main_threads(setns: Callable[[int], object]) -> None:
    main = here()
    seen = []

    def recipe(pod: NetNs) -> None:
        back = os.open("/proc/self/ns/net", os.O_RDONLY)
        setns(pod.fileno())
        socket.socket().close()
        setns(back)
        os.close(back)

    def live_elsewhere() -> None:
        with NetNs.create() as dwelling, NetNs.create() as pod:
            libc.setns(dwelling.fileno(), CLONE_NEWNET)
            pod.socket().close()
            assert here() == dwelling.inode, "with pyztun the thread is where it was"
            recipe(pod)
            seen.append(here() == dwelling.inode)

    pods.in_thread(live_elsewhere)
    assert seen == [False]
    assert here() == main


NO_WAY_BACK = """
import ctypes, os, socket, threading
from pyztun import MissingCapability, NetNs
libc = ctypes.CDLL(None, use_errno=True)
here = lambda: os.stat("/proc/thread-self/ns/net").st_ino
def recipe():
    home, back = here(), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with NetNs.create() as pod:
        try:
            pod.listen(("127.0.0.1", 0))
        except MissingCapability:
            print("refused before it leaves", here() == home)
        libc.setns(pod.fileno(), 0)
        socket.create_server(("127.0.0.1", 0)).close()
        print("lost", libc.setns(back, 0) == -1 and here() == pod.inode)
thread = threading.Thread(target=recipe)
thread.start()
thread.join()
"""


@pytest.mark.needs_userns
def test_there_may_be_no_way_back(no_capability: list[str]) -> None:
    """In a user namespace of one's own without a netns of one's own."""
    done = run_code(NO_WAY_BACK, wrap=[*no_capability, "unshare", "-Ur"])
    assert done.stdout.split("\n") == ["refused before it leaves True", "lost True", ""]


def test_os_setns_is_new() -> None:
    assert hasattr(os, "setns") == (sys.version_info >= (3, 12))


@pytest.mark.needs_named_netns
def test_ip_netns_exec_moves_the_whole_process(pod: pods.Pod) -> None:
    look = "readlink /proc/self/ns/net /proc/self/ns/mnt"
    there = pod.exec("sh", "-c", look).stdout.split()
    assert there[0] == f"net:[{pod.inode}]"
    assert there[1] != os.readlink("/proc/self/ns/mnt"), "its mounts are not ours"


@pytest.mark.needs_named_netns
def test_ip_netns_exec_needs_a_name(make_pod: Callable[[], pods.Pod]) -> None:
    pod = make_pod()
    (listener,) = NetNs.open(pod.name).listen(("127.0.0.1", 0))
    pod.delete()
    with listener:
        gone = pod.exec("true")
        assert gone.returncode != 0
        assert "Cannot open network namespace" in gone.stderr
        with socket_netns(listener) as living:
            again = living.socket()
            again.connect(listener.getsockname())
            again.close()


@pytest.mark.needs_named_netns
def test_pyroute2_creates_what_is_misspelled() -> None:
    name = pods.unique_name()
    made = _pyroute2(f"create_socket({name!r}).close(); print('fine')")
    assert made == "fine"
    assert name in pods.names(), "a netns that nobody wanted"
    NetNs.from_name(name).remove()
    with pytest.raises(NetnsGone):
        listen(("127.0.0.1", 0), netns=name)
    assert name not in pods.names()


@pytest.mark.needs_named_netns
def test_pyroute2_forks_for_each_socket(pod: pods.Pod) -> None:
    count = "import os; n = []; os.register_at_fork(before=lambda: n.append(1))\n"
    forks = _pyroute2(f"s = create_socket({pod.name!r}); s.close(); print(len(n))", count)
    assert int(forks) >= 1
    ours = f"from pyztun import NetNs; NetNs.open({pod.name!r}).socket().close(); print(len(n))"
    assert python(count + ours) == "0"


@pytest.mark.needs_named_netns
def test_pyroute2_sockets_are_inherited(pod: pods.Pod) -> None:
    assert _pyroute2(f"print(create_socket({pod.name!r}).get_inheritable())") == "True"
    with NetNs.open(pod.name) as netns, netns.socket() as ours:
        assert not ours.get_inheritable()


def _pyroute2(code: str, before: str = "") -> str:
    return python(f"{before}from pyroute2.netns import create_socket\n{code}")
