"""NetNs.open and its kin: every way to name a netns, and whatever else may be at that name."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyztun import NetNs, NetnsError, NetnsGone, NotANetns, OwnedFd, PyztunError, SyscallError
from support import leaks, pods
from support.pods import Pod
from support.zt_child import run_code

MakePod = Callable[[], Pod]


def identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def test_every_reference_names_the_same_netns(pod: Pod, directory: Path) -> None:
    link = directory / "link"
    link.symlink_to(pod.path)
    with pod.opened() as fd:
        for reference in (pod.path, pod.name, f"fd:{fd}", str(link), f"/proc/self/fd/{fd}"):
            with NetNs.open(reference) as netns:
                assert (netns.dev, netns.inode) == identity(pod.path)
                assert netns.cookie == pod.cookie
                assert netns.reference == reference
                assert not os.get_inheritable(netns.fileno())
                assert netns.fileno() != fd
        os.fstat(fd)  # a duplicate was taken


def test_a_process_names_its_netns(pod: Pod) -> None:
    with NetNs.open(f"pid:{os.getpid()}") as netns:
        assert netns.inode == leaks.netns_inode()
    with NetNs.current() as here, NetNs.open("/proc/self/ns/net") as there:
        assert here.is_same(there)
    with NetNs.open(pod.name) as netns, NetNs.current() as here:
        assert not here.is_same(netns)


def test_current_is_the_netns_of_the_thread(pod: Pod) -> None:
    def look() -> tuple[int, int]:
        with NetNs.current() as netns:
            return netns.inode, netns.cookie

    assert pods.in_netns(pod.path, look) == (pod.inode, pod.cookie)


def test_a_path_in_the_working_directory_needs_its_slash(
    pod: Pod, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "here").symlink_to(pod.path)
    monkeypatch.chdir(directory)
    with NetNs.open("./here") as netns:
        assert netns.inode == pod.inode
    with pytest.raises(NetnsGone, match=r"^here: no such netns$"):
        NetNs.open("here")


GONE = [
    "",
    ".",
    "..",
    "no-such-name",
    "no such name",
    "/run/netns/no-such-name",
    "./no/such/path",
    "/dev/null/below",
    "x" * 300,
    "/" + "x" * 5000,
    "pid:0",
    "pid:4194305",
    "pid:99999999999999999999",
    "pid:",
    "pid:-1",
    "pid:self",
    "fd:",
    "fd:-1",
    "fd:999999",
    "fd:2147483647",
    "fd:2147483648",
    "fd:99999999999999999999",
    "fd:" + "9" * 5000,
    "pid:\u00b2",
    "nul\0byte",
    "/run/netns/nul\0byte",
    "\ud800",
    "/\ud800",
]


@pytest.mark.parametrize("reference", GONE, ids=lambda text: repr(text[:30]))
def test_what_is_not_there(reference: str) -> None:
    with pytest.raises(NetnsGone) as caught:
        NetNs.open(reference)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, NetnsError)
    assert "\n" not in str(caught.value)


def hostile(name: str, directory: Path) -> str:
    """Makes what NAME says in DIRECTORY and returns its path."""
    path = directory / "hostile"
    makers: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(path),
        "regular file": path.touch,
        "directory": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "terminal": lambda: path.symlink_to("/dev/ptmx"),
        "mount ns": lambda: path.symlink_to("/proc/self/ns/mnt"),
        "user ns": lambda: path.symlink_to("/proc/self/ns/user"),
        "pid ns": lambda: path.symlink_to("/proc/self/ns/pid"),
        "proc file": lambda: path.symlink_to("/proc/self/status"),
    }
    makers[name]()
    return str(path)


HOSTILE = [
    "fifo",
    "regular file",
    "directory",
    "device",
    "terminal",
    "mount ns",
    "user ns",
    "pid ns",
    "proc file",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_there_but_no_netns(name: str, directory: Path) -> None:
    path = hostile(name, directory)
    with pytest.raises(NotANetns) as caught:
        NetNs.open(path)
    assert str(caught.value) == f"{path}: not a network namespace"


def test_a_netns_is_never_made_by_a_typo(directory: Path) -> None:
    with pytest.raises(NetnsGone):
        NetNs.open(str(directory / "typo"))
    assert list(directory.iterdir()) == []


def test_a_socket_and_a_loop_are_told_by_errno(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        with pytest.raises(SyscallError) as caught:
            NetNs.open(str(directory / "socket"))
        assert isinstance(caught.value, NotANetns)
    (directory / "loop").symlink_to(directory / "loop")
    with pytest.raises(SyscallError, match="ELOOP"):
        NetNs.open(str(directory / "loop"))


def test_no_capability_cannot_look_at_another_process(no_capability: list[str]) -> None:
    """Another uid's /proc/PID/ns/net is EACCES, and not even there under hidepid=invisible."""
    code = (
        "import sys, pyztun\n"
        "try:\n    pyztun.NetNs.open(sys.argv[1]).close()\n"
        "except pyztun.PyztunError as error:\n    print(error)\n"
    )
    if not no_capability:
        pytest.skip("without root this is the same user, who may look")
    done = run_code(code, f"pid:{os.getpid()}", wrap=no_capability)
    assert done.stderr == ""
    me = f"pid:{os.getpid()}"
    assert done.stdout.startswith((f"open {me}: EACCES", f"{me}: no such process, or /proc hides"))


OTHER_KINDS = [
    lambda: os.open("/dev/null", os.O_PATH),
    lambda: os.pidfd_open(os.getpid()),
    lambda: os.eventfd(0),
    lambda: os.memfd_create("x"),
    lambda: socket.socket().detach(),
]


@pytest.mark.parametrize("make", OTHER_KINDS)
def test_descriptors_of_other_kinds(make: Callable[[], int]) -> None:
    fd = make()
    try:
        with pytest.raises(PyztunError):
            NetNs.from_fd(fd)
        os.fstat(fd)
    finally:
        os.close(fd)


def test_a_netns_opened_as_a_mere_path_is_refused() -> None:
    """O_PATH gives a descriptor on which neither ioctl() nor setns() works."""
    fd = os.open("/proc/self/ns/net", os.O_PATH)
    try:
        with pytest.raises(SyscallError) as caught:
            NetNs.from_fd(fd)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(fd)


def test_owner_and_repr(pod: Pod) -> None:
    with NetNs.open(pod.name) as netns:
        assert netns.owner_uid == os.geteuid()
        assert repr(netns) == f"<NetNs {pod.name} inode {pod.inode}>"


def test_the_constructor_takes_ownership_also_when_it_fails() -> None:
    before = leaks.open_fds()
    with pytest.raises(NotANetns):
        NetNs(OwnedFd(os.open("/dev/null", os.O_RDONLY)), "x")
    assert leaks.open_fds() == before


def test_a_new_netns_under_an_old_path_is_another(make_pod: MakePod) -> None:
    pod = make_pod()
    with NetNs.open(pod.path) as old:
        pod.delete()
        again = Pod(pod.name)
        try:
            with NetNs.open(pod.path) as new:
                assert not new.is_same(old)
                assert new.cookie == again.cookie != old.cookie
        finally:
            again.delete()


# ---- create --------------------------------------------------------------------------------------


@pytest.mark.needs_netns
def test_create_makes_a_fresh_netns_with_loopback_and_does_not_move() -> None:
    home = leaks.netns_inode()
    seen: list[int] = []

    def make() -> None:
        with NetNs.create() as netns:
            here = os.stat("/proc/thread-self/ns/net").st_ino
            seen.extend([here, netns.inode])
            assert not os.get_inheritable(netns.fileno())

            def talk() -> bytes:
                with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
                    client.settimeout(10)
                    client.connect(server.getsockname())
                    peer, _ = server.accept()
                    with peer:
                        peer.send(b"up")
                    return client.recv(10)

            assert pods.in_netns(netns.fileno(), talk) == b"up"
            assert netns.cookie == pods.cookie_of(netns.fileno())

    make()
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert seen[0] == seen[2] == home == leaks.netns_inode()
    assert home not in (seen[1], seen[3])


@pytest.mark.needs_named_netns
def test_create_with_a_name_is_what_ip_netns_add_makes() -> None:
    name = pods.unique_name()
    with NetNs.create(name) as netns:
        assert os.stat(f"/run/netns/{name}").st_ino == netns.inode
        assert os.stat(f"/run/netns/{name}").st_dev == netns.dev
        with NetNs.open(name) as again:
            assert again.is_same(netns)
        with pytest.raises(SyscallError) as caught:
            NetNs.create(name)
        assert caught.value.errno == errno.EEXIST
        assert f"/run/netns/{name}" in str(caught.value)
        netns.remove()
        assert not os.path.lexists(f"/run/netns/{name}")
        netns.remove()
        assert netns.inode == os.fstat(netns.fileno()).st_ino


@pytest.mark.needs_named_netns
def test_a_created_name_can_be_deleted_by_ip_netns() -> None:
    name = pods.unique_name()
    with NetNs.create(name):
        pass  # the name outlives the object
    pod = _by_name(name)
    assert pod.exec("ip", "-br", "link").stdout.split()[:2] == ["lo", "UNKNOWN"]
    pod.delete()
    assert not os.path.lexists(pod.path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/run/netns/{}", "{}\0byte", "x" * 300])
@pytest.mark.needs_named_netns
def test_names_that_are_none_leave_nothing_behind(name: str) -> None:
    """The NUL byte would end the name for C: another one than what was asked for."""
    before = pods.names()
    refused = False
    try:
        NetNs.create(name.format(pods.unique_name())).close()
    except (ValueError, SyscallError):
        refused = True
    left = {each for each in pods.names() - before if pods.owner_of(each) == os.getpid()}
    for each in left:
        _by_name(each).delete()
    assert (refused, left) == (True, set())


def _by_name(name: str) -> Pod:
    """A pod that exists already; Pod() would make it."""
    pod = Pod.__new__(Pod)
    pod.name, pod.path = name, f"/run/netns/{name}"
    return pod
