"""`pyztun netns ls`: what keeps a netns alive, each kind of it on a real netns."""

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netns_listing import ME, Listing, pin, pins_of

from pyztun.netns import NetNs
from pyztun.tools.census import Census
from pyztun.tools.procwalk import Walk
from support import pods
from support.pods import Pod

pytestmark = pytest.mark.needs_named_netns

AWAY = """
import ctypes, os, sys, threading
path, exit_call = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
def away():
    fd = os.open(path, os.O_RDONLY)
    libc.setns(fd, 0x40000000)
    print(threading.get_native_id(), fd, flush=True)
    sys.stdin.read()
    os._exit(0)
thread = threading.Thread(target=away)
thread.start()
if exit_call:
    libc.syscall(exit_call, 0)
thread.join()
"""
EXIT = {"x86_64": 60, "aarch64": 93}


@contextmanager
def talking(*words: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A process that says one line and waits for the end of its stdin; the words of that line."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()
        process.communicate(timeout=20)


def test_name_and_mount(pod: Pod) -> None:
    entry = Listing().one(pod.cookie)
    assert entry["inode"] == pod.inode
    assert entry["home"] is False
    assert entry["names"] == [pod.name]
    assert entry["paths"] == [pod.path]
    assert entry["processes"] == []
    assert entry["listening"] == []
    assert pin("mount", path=pod.path) in entry["pinned_by"]


def test_two_names_and_a_path_are_one_netns(pod: Pod, directory: Path) -> None:
    other = pods.unique_name()
    elsewhere = directory / "a name with \\ and space"
    places = [f"/run/netns/{other}", str(elsewhere)]
    for place in places:
        Path(place).touch()
        subprocess.run(["mount", "--bind", pod.path, place], check=True)
    try:
        entry = Listing().one(pod.cookie)
    finally:
        for place in places:
            subprocess.run(["umount", place], check=True)
            Path(place).unlink()
    assert entry["names"] == sorted([pod.name, other])
    assert entry["paths"] == sorted([pod.path, *places])
    for path in entry["paths"]:
        assert pin("mount", path=path) in entry["pinned_by"]


def test_process(pod: Pod) -> None:
    words = ["cat", "-", "/dev/null"]
    inside = pods.in_netns(pod.path, lambda: subprocess.Popen(words, stdin=subprocess.PIPE))
    try:
        entry = Listing().one(pod.cookie)
    finally:
        inside.communicate()
    assert entry["processes"] == [{"pid": inside.pid, "command": "cat - /dev/null"}]
    assert pin("process", pid=inside.pid) in entry["pinned_by"]
    assert Listing().one(pod.cookie)["processes"] == []


def test_what_a_process_inside_holds_itself_is_no_pin(pod: Pod) -> None:
    script = "import socket, sys; s = socket.create_server(('127.0.0.1', 80)); print('up', flush=1)"
    words = [sys.executable, "-c", f"{script}; f = open('/proc/self/ns/net'); sys.stdin.read()"]
    inside = ["ip", "netns", "exec", pod.name, *words]
    with talking(*inside) as (process, _):
        entry = Listing().one(pod.cookie)
    # `ip netns exec` makes a mount namespace, into which the mount of the name is copied.
    kinds = [each["kind"] for each in entry["pinned_by"] if each["kind"] != "mount"]
    assert kinds == ["process"]
    assert entry["listening"][0]["pids"] == [process.pid]


def test_thread_alone(pod: Pod) -> None:
    ready, done = threading.Event(), threading.Event()
    tids: list[int] = []

    def stay() -> None:
        tids.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=lambda: pods.in_netns(pod.path, stay))
    thread.start()
    assert ready.wait(10)
    pod.delete()
    try:
        entry = Listing().one(pod.cookie)
    finally:
        done.set()
        thread.join()
    assert (entry["names"], entry["paths"], entry["processes"]) == ([], [], [])
    assert entry["pinned_by"] == [pin("thread", pid=ME, tid=tids[0])]


def test_a_thread_of_the_lister_is_no_pin(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one that looked into the netns may not have ended when its own process is read."""
    ready, done = threading.Event(), threading.Event()

    def stay() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=lambda: pods.in_netns(pod.path, stay))
    thread.start()
    assert ready.wait(10)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # it would stay with the tests
    census = Census()
    try:
        Walk(census, lambda *_: None).run()
        (found,) = (each for each in census.netns if each.cookie == pod.cookie)
        assert {each.kind for each in found.pins} == {"mount"}
    finally:
        done.set()
        thread.join()
        census.close()


@pytest.mark.parametrize("main_thread_ends", [False, True])
def test_thread_of_another_process(pod: Pod, main_thread_ends: bool) -> None:
    """Whose main thread has ended has an empty /proc/PID/fd."""
    call = EXIT.get(os.uname().machine, 0) if main_thread_ends else 0
    words = [sys.executable, "-c", AWAY, pod.path, str(call)]
    with talking(*words) as (process, (tid, fd)):
        entry = Listing().one(pod.cookie)
    assert pin("thread", pid=process.pid, tid=int(tid)) in entry["pinned_by"]
    assert pin("fd", pid=process.pid, fd=int(fd)) in entry["pinned_by"]


def test_descriptor_that_was_opened_by_name(pod: Pod) -> None:
    with pod.opened() as fd:
        assert os.readlink(f"/proc/self/fd/{fd}") == pod.path
        assert pin("fd", pid=ME, fd=fd) in Listing().one(pod.cookie)["pinned_by"]
        pod.delete()
        assert os.readlink(f"/proc/self/fd/{fd}") == "/"
        entry = Listing().one(pod.cookie)
        assert entry["pinned_by"] == [pin("fd", pid=ME, fd=fd)]
        assert (entry["names"], entry["paths"], entry["inode"]) == ([], [], pod.inode)
        assert entry["listening"] == []
    assert Listing().find(pod.cookie) is None


def test_descriptor_that_was_opened_by_proc() -> None:
    fd = pods.nameless_netns()
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("net:[")
        entry = Listing().one(pods.cookie_of(fd))
    finally:
        os.close(fd)
    assert entry["pinned_by"] == [pin("fd", pid=ME, fd=fd)]


def connected() -> list[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return [client, server.accept()[0]]


def bound_unix() -> list[socket.socket]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\0pyztun-test")
    return [sock]


SOCKETS: dict[str, Callable[[], list[socket.socket]]] = {
    "listening": lambda: [socket.create_server(("127.0.0.1", 0))],
    "connected": connected,
    "unbound": lambda: [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)],
    "unix": bound_unix,
    "unix pair": lambda: list(socket.socketpair()),
    "netlink": lambda: [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)],
    "packet": lambda: [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)],
}


@pytest.mark.parametrize("kind", SOCKETS)
def test_socket_alone(pod: Pod, kind: str) -> None:
    made = pods.in_netns(pod.path, SOCKETS[kind])
    pod.delete()
    try:
        entry = Listing().one(pod.cookie)
    finally:
        for each in made:
            each.close()
        numbers = [pin["fd"] for pin in entry["pinned_by"]]
    assert len(numbers) == len(made)
    assert entry["pinned_by"] == [pin("socket", pid=ME, fd=fd) for fd in numbers]
    assert entry["inode"] == pod.inode
    assert entry["processes"] == []
    assert bool(entry["listening"]) == (kind == "listening")
    assert Listing().find(pod.cookie) is None


def test_socket_that_two_processes_share(pod: Pod) -> None:
    (listener,) = NetNs.from_name(pod.name).listen(("127.0.0.1", 8080))
    with listener:
        fd = listener.fileno()
        words = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, pass_fds=[fd]) as other:
            assert other.stdout is not None
            other.stdout.readline()
            entry = Listing().one(pod.cookie)
            other.communicate()
    pids = sorted([ME, other.pid])
    assert entry["listening"][0]["pids"] == pids
    sockets = pins_of(entry, "socket")
    assert sorted(each["pid"] for each in sockets) == pids
    assert {each["fd"] for each in sockets} == {fd}


def test_tun_descriptor_alone(pod: Pod) -> None:
    def open_tun() -> int:
        return os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)

    try:
        tun = pods.in_netns(pod.path, open_tun)
    except OSError as error:
        pytest.skip(f"/dev/net/tun: {error.strerror}")
    pod.delete()
    try:
        assert Listing().one(pod.cookie)["pinned_by"] == [pin("tun", pid=ME, fd=tun)]
    finally:
        os.close(tun)


def test_mount_in_another_mount_namespace(pod: Pod) -> None:
    script = f"""
        mount -t tmpfs tmpfs /mnt; touch /mnt/kept; mount --bind {pod.path} /mnt/kept
        echo up; exec cat"""
    with talking("unshare", "--mount", "sh", "-ec", script) as (process, _):
        pod.delete()
        entry = Listing().one(pod.cookie)
        path = f"/proc/{process.pid}/root/mnt/kept"
        assert entry["paths"] == [path]
        with NetNs.from_path(path) as kept:
            assert kept.cookie == pod.cookie
    assert entry["names"] == []
    assert entry["pinned_by"] == [pin("mount", pid=process.pid, path="/mnt/kept")]
    assert Listing().find(pod.cookie) is None


def test_other_descriptors_are_none(directory: Path) -> None:
    """Other namespaces have the device number of a netns; other files have paths too."""
    paths = [f"/proc/self/ns/{kind}" for kind in ("mnt", "uts", "user", "ipc", "pid")]
    paths += ["/dev/null", "/", "/proc/self/net/tcp", str(directory)]
    held = [os.open(path, os.O_RDONLY) for path in paths]
    held += [os.memfd_create("net:[4026531833]"), os.open("/dev/zero", os.O_PATH)]
    try:
        listing = Listing()
    finally:
        for fd in held:
            os.close(fd)
    pinning = {
        each["fd"] for one in listing.netns for each in pins_of(one, "fd") if each["pid"] == ME
    }
    assert pinning & set(held) == set()


def test_other_namespace_that_was_opened_by_a_path(directory: Path) -> None:
    """It looks like a netns in every way but the ioctl that tells the kind."""
    script = f"""
        mount -t tmpfs tmpfs {directory}; touch {directory}/uts
        mount --bind /proc/self/ns/uts {directory}/uts
        exec 3<{directory}/uts; umount -l {directory}/uts; echo up; exec cat"""
    with talking("unshare", "--mount", "sh", "-ec", script) as (process, _):
        assert os.readlink(f"/proc/{process.pid}/fd/3") == "/"
        listing = Listing()
    pins = [
        each for one in listing.netns for each in one["pinned_by"] if each["pid"] == process.pid
    ]
    # Its mounts are copies of ours: names that another test makes and removes meanwhile live there.
    assert {each["kind"] for each in pins} - {"mount"} == {"process"}
