"""`pyztun netns ls`: what listens where, the form of the JSON, what cannot be read, old kernels."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from netns_listing import ME, Listing, pin, pins_of

from pyztun.netns import NetNs
from support import needs, pods, zt_oldkernel
from support.pods import Pod
from support.programs import Daemon, cni, environment, program, run_program

pytestmark = pytest.mark.needs_named_netns

CROWD = Path(__file__).with_name("netns_crowd.py")


def listening(
    proto: str, address: str, port: int, *pids: int, interface: int = 0
) -> dict[str, Any]:
    return {
        "proto": proto,
        "address": address,
        "port": port,
        "interface": interface,
        "pids": list(pids),
    }


# ---- what listens ------------------------------------------------------------------------------


def test_listeners_of_a_process_outside(pod: Pod) -> None:
    netns = NetNs.from_name(pod.name)
    with netns, ExitStack() as stack:
        tcp = [("127.0.0.1", 15001), ("0.0.0.0", 15006), ("::1", 15008)]
        udp = [("127.0.0.1", 53), ("::", 5353)]
        for each in (*netns.listen(*tcp), *netns.listen(*udp, type=socket.SOCK_DGRAM)):
            stack.enter_context(each)
        connected = stack.enter_context(netns.socket(socket.AF_INET, socket.SOCK_DGRAM))
        connected.connect(("127.0.0.1", 53))
        entry = Listing().one(pod.cookie)
    assert entry["listening"] == [
        *(listening("tcp", address, port, ME) for address, port in tcp),
        *(listening("udp", address, port, ME) for address, port in udp),
    ]
    assert len(pins_of(entry, "socket")) == 6


def test_sockets_that_share_a_port_are_one_place(pod: Pod) -> None:
    netns = NetNs.from_name(pod.name)
    with netns, ExitStack() as stack:
        for _ in range(3):
            (each,) = netns.listen(("127.0.0.1", 8080), reuse_port=True)
            stack.enter_context(each)
        entry = Listing().one(pod.cookie)
    assert entry["listening"] == [listening("tcp", "127.0.0.1", 8080, ME)]
    assert len(pins_of(entry, "socket")) == 3


def test_interface_to_which_a_socket_is_bound(pod: Pod) -> None:
    with NetNs.from_name(pod.name) as netns, netns.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        sock.bind(("0.0.0.0", 68))
        entry = Listing().one(pod.cookie)
    assert entry["listening"] == [listening("udp", "0.0.0.0", 68, ME, interface=1)]


def test_pod_of_a_ztunnel(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    assert cni(sock_path, pod.name).returncode == 0
    entry = Listing().one(pod.cookie)
    ports = {each["port"]: each["pids"] for each in entry["listening"]}
    assert ports == {port: [ztunnel.pid] for port in (15001, 15006, 15008)}
    assert {each["pid"] for each in pins_of(entry, "socket")} == {ztunnel.pid}
    pod.delete()
    entry = Listing().one(pod.cookie)
    assert entry["names"] == []
    assert len(pins_of(entry, "socket")) == 3


def test_home() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (entry,) = (one for one in Listing().netns if one["home"])
        assert listening("tcp", *server.getsockname(), ME) in entry["listening"]
    with NetNs.current() as home:
        assert (entry["cookie"], entry["inode"]) == (home.cookie, home.inode)
    (me,) = (each for each in entry["processes"] if each["pid"] == ME)
    assert "python" in me["command"]
    assert pins_of(entry, "fd") == [each for each in pins_of(entry, "fd") if each["pid"] != ME]


# ---- JSON --------------------------------------------------------------------------------------

NETNS = {
    "cookie": int,
    "inode": int,
    "home": bool,
    "names": list,
    "paths": list,
    "processes": list,
    "listening": list,
    "pinned_by": list,
}
LISTENING = {"proto": str, "address": str, "port": int, "interface": int, "pids": list}
PIN = {
    "pid": (int, type(None)),
    "fd": (int, type(None)),
    "kind": str,
    "tid": (int, type(None)),
    "path": (str, type(None)),
}
UNREADABLE = {"what": str, "why": str, "count": int, "examples": list}


def check(entry: dict[str, Any], fields: dict[str, Any]) -> None:
    assert list(entry) == list(fields)
    for name, kind in fields.items():
        assert isinstance(entry[name], kind), (name, entry[name])


def test_form_of_the_json(pod: Pod, no_capability: list[str]) -> None:
    netns = NetNs.from_name(pod.name)
    with netns, ExitStack() as stack:
        for listener in netns.listen(("127.0.0.1", 80), ("::1", 81)):
            stack.enter_context(listener)
        whole = Listing()
    assert list(whole.whole) == ["netns", "unreadable"]
    for one in whole.netns:
        check(one, NETNS)
        for each in one["processes"]:
            check(each, {"pid": int, "command": str})
        for each in one["listening"]:
            check(each, LISTENING)
        for each in one["pinned_by"]:
            check(each, PIN)
            assert each["kind"] in ("process", "thread", "fd", "socket", "tun", "mount")
            assert (each["path"] is not None) == (each["kind"] == "mount")
            assert (each["tid"] is not None) == (each["kind"] == "thread")
            assert (each["fd"] is not None) == (each["kind"] in ("fd", "socket", "tun"))
    for refusal in Listing(no_capability).unreadable:
        check(refusal, UNREADABLE)
        assert refusal["count"] >= len(refusal["examples"]) >= 1
    cookies = [one["cookie"] for one in whole.netns]
    assert len(set(cookies)) == len(cookies)
    assert whole.netns[0]["home"]
    assert [one["home"] for one in whole.netns].count(True) == 1


def test_one_netns_a_line(pod: Pod) -> None:
    (line,) = (line for line in Listing().text.splitlines() if f'"cookie": {pod.cookie},' in line)
    assert json.loads(line.rstrip(","))["names"] == [pod.name]


# ---- without privilege -------------------------------------------------------------------------


def test_without_a_capability(pod: Pod, no_capability: list[str]) -> None:
    needs.require("needs_root")
    with pod.opened():
        listing = Listing(no_capability)
    entry = listing.one(pod.cookie)
    assert (entry["names"], entry["inode"]) == ([pod.name], pod.inode)
    assert entry["listening"] is None
    assert pins_of(entry, "fd") == []
    assert listing.one(pods.cookie_of("/proc/self/ns/net"))["listening"] is not None
    assert "EACCES (needs CAP_SYS_PTRACE" in listing.reasons("/proc/PID/ns/net")
    assert "EACCES (needs CAP_SYS_PTRACE" in listing.reasons("/proc/PID/fd")
    assert "EACCES (needs CAP_SYS_PTRACE" in listing.reasons("/proc/PID/mountinfo")
    assert "EPERM (needs CAP_SYS_ADMIN" in listing.reasons("listening sockets")
    others = sum(each["count"] for each in listing.unreadable if "ns/net" in each["what"])
    assert others > 1


def test_own_sockets_without_a_capability(pod: Pod, no_capability: list[str]) -> None:
    """Of a netns of others: found by SO_NETNS_COOKIE, which needs none."""
    needs.require("needs_root")
    (listener,) = NetNs.from_name(pod.name).listen(("127.0.0.1", 8080))
    fd = listener.fileno()
    script = 'sleep 60 & trap "kill $!" EXIT; "$@"; echo "$!"'
    words = [*program("pyztun"), "netns", "ls", "--json"]
    with listener:
        pod.delete()
        done = subprocess.run(
            [*no_capability, "sh", "-c", script, "sh", *words],
            capture_output=True,
            text=True,
            check=True,
            pass_fds=[fd],
            env=environment(),
        )
    text, _, pid = done.stdout.rstrip().rpartition("\n")
    whole = json.loads(text)
    (entry,) = (one for one in whole["netns"] if one["cookie"] == pod.cookie)
    assert (entry["inode"], entry["listening"]) == (None, None)
    assert pin("socket", pid=int(pid), fd=fd) in entry["pinned_by"]
    (refusal,) = (each for each in whole["unreadable"] if "SIOCGSKNS" in each["what"])
    assert refusal["why"].startswith("EPERM (needs CAP_NET_ADMIN")


def test_in_a_user_namespace(own_userns: list[str]) -> None:
    """Its own netns are as open to it as those of the host to root."""
    script = 'ip netns add mine && ip netns add other && ip netns exec mine "$@"'
    listing = Listing([*own_userns, "sh", "-c", script, "sh"])
    mine, other = (one for one in listing.netns if one["names"])
    assert [one["names"] for one in (mine, other)] == [["mine"], ["other"]]
    assert mine["home"]
    assert mine["listening"] == other["listening"] == []
    assert "CAP_SYS_PTRACE" in listing.reasons("/proc/PID/ns/net")


def test_proc_that_hides_processes(no_capability: list[str]) -> None:
    needs.require("needs_root")
    script = "mount -t proc -o hidepid=2 proc /proc; exec setpriv --reuid=4242 --clear-groups "
    hidden = ["unshare", "--mount", "sh", "-ec", script + '--bounding-set=-all "$@"', "sh"]
    listing = Listing([*no_capability[: no_capability.index("setpriv")], *hidden])
    assert "hidepid (needs CAP_SYS_PTRACE)" in listing.reasons("processes that /proc hides")


HIDING = {
    "another file": "mount --bind /dev/null {path}",
    "an empty directory": "mount -t tmpfs tmpfs /run",
    "another netns": "mount --bind /proc/self/ns/net {path}",
}


@pytest.mark.parametrize("what", HIDING)
def test_mount_that_another_hides(pod: Pod, what: str, no_capability: list[str]) -> None:
    """It pins the netns but is no way to it; root finds another through our mount namespace."""
    needs.require("needs_root")
    script = HIDING[what].format(path=pod.path) + '; exec "$@"'
    wrap = ["unshare", "--mount", "sh", "-ec", script, "sh"]
    listing = Listing([*wrap, *no_capability])
    (entry,) = (one for one in listing.netns if one["inode"] == pod.inode)
    assert (entry["cookie"], entry["names"], entry["paths"]) == (None, [], [])
    assert pin("mount", path=pod.path) in entry["pinned_by"]
    assert "another mount hides it" in listing.reasons("mount point")
    listing = Listing(wrap)
    entry = listing.one(pod.cookie)
    assert entry["names"] == []
    assert [os.stat(path).st_ino for path in entry["paths"]] == [pod.inode]
    assert pin("mount", path=pod.path) in entry["pinned_by"]
    assert "another mount" not in listing.reasons("mount point")


def test_name_below_a_closed_directory(
    pod: Pod, shared_directory: Path, no_capability: list[str]
) -> None:
    needs.require("needs_root")
    closed = shared_directory / "closed"
    closed.mkdir(mode=0o700)
    (closed / "pod").touch()
    subprocess.run(["mount", "--bind", pod.path, str(closed / "pod")], check=True)
    try:
        pod.delete()
        listing = Listing(no_capability)
    finally:
        subprocess.run(["umount", str(closed / "pod")], check=True)
    (entry,) = (one for one in listing.netns if one["inode"] == pod.inode)
    assert entry["paths"] == [str(closed / "pod")]
    assert "EACCES (needs CAP_DAC_READ_SEARCH" in listing.reasons("mount point")


# ---- other kernels, other times ----------------------------------------------------------------


@pytest.mark.skipif(not zt_oldkernel.available(), reason="syscall numbers unknown here")
def test_kernel_that_tells_the_cookie_of_sockets_only(pod: Pod) -> None:
    (listener,) = NetNs.from_name(pod.name).listen(("127.0.0.1", 8080))
    with listener:
        listing = Listing(zt_oldkernel.prefix("id"))
        assert listing.one(pod.cookie)["listening"] == [listening("tcp", "127.0.0.1", 8080, ME)]
        pod.delete()
        entry = Listing(zt_oldkernel.prefix("id")).one(pod.cookie)
    assert entry["inode"] == pod.inode
    assert len(pins_of(entry, "socket")) == 1


@pytest.mark.skipif(not zt_oldkernel.available(), reason="syscall numbers unknown here")
def test_kernel_without_cookies(pod: Pod) -> None:
    (listener,) = NetNs.from_name(pod.name).listen(("127.0.0.1", 8080))
    with listener:
        pod.delete()
        listing = Listing(zt_oldkernel.prefix("id,cookie"))
    (entry,) = (one for one in listing.netns if one["inode"] == pod.inode)
    assert entry["cookie"] is None
    assert entry["listening"] == [listening("tcp", "127.0.0.1", 8080, ME)]
    assert len(pins_of(entry, "socket")) == 1
    assert "ENOPROTOOPT" in listing.reasons("cookie of a netns")


def test_processes_that_come_and_go(pod: Pod) -> None:
    quiet = Listing()
    words = ["sh", "-c", "while :; do /bin/true & wait $!; done"]
    with subprocess.Popen(words) as storm:
        try:
            listings = [Listing() for _ in range(5)]
        finally:
            storm.terminate()
    for each in listings:
        assert each.one(pod.cookie)["names"] == [pod.name]
        assert [entry["what"] for entry in each.unreadable] == [
            entry["what"] for entry in quiet.unreadable
        ]


def test_filesystem_that_never_answers(pod: Pod) -> None:
    """A FUSE server that never says a word; stat(2) of a file there would wait for ever."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse, or not for us")
    script = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
server = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
def mount():
    if libc.mount(b"fuse", b"/mnt", b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
mount()
held = os.open("/mnt", os.O_PATH)
if sys.argv[1] == "detached":
    libc.umount2(b"/mnt", 2)
sys.exit(subprocess.run(sys.argv[2:], timeout=30).returncode)
"""
    for state in ("mounted", "detached"):
        wrap = ["unshare", "--mount", sys.executable, "-c", script, state]
        done = run_program("pyztun", "netns", "ls", "--json", wrap=wrap, seconds=40)
        assert done.returncode == 0, done.stderr
        assert any(one["names"] == [pod.name] for one in json.loads(done.stdout)["netns"])


@pytest.mark.slow
def test_a_thousand_netns_and_ten_thousand_descriptors(
    record_property: Callable[[str, object], None],
) -> None:
    words = ["unshare", "--mount", sys.executable, str(CROWD), "10", program("pyztun")[-1]]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment(), timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    record_property("seconds", found["seconds"])
    print(found)
    assert (found["netns"], found["nameless"]) == (1000, 500)
    assert found["fds"] > 9900
    assert (found["listening"], found["owned"]) == (3000, 3000)
    # 1.3 s on two idle cores; the tests may not have them to themselves.
    assert found["seconds"] < 5
