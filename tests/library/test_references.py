"""Every form of a netns= argument, what is borrowed, and what a closed NetNs does."""

import copy
import errno
import os
import pickle
import socket
import subprocess
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyztun import NetNs, NetnsClosed, NetnsGone, NotANetns, OwnedFd, SyscallError, listen
from support import pods
from support.pods import Pod
from support.zt_child import run_code

MakePod = Callable[[], Pod]

pytestmark = pytest.mark.needs_netns


@pytest.mark.needs_named_netns
def test_every_form_means_the_same(pod: Pod) -> None:
    sleeper = subprocess.Popen(
        ["ip", "netns", "exec", pod.name, "sh", "-c", "echo; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()  # by now it is in the pod
        with NetNs.open(pod.name) as held:
            number = held.fileno()
            forms: list[NetNs | str | Path | int] = [
                held,
                pod.name,
                pod.path,
                Path(pod.path),
                f"pid:{sleeper.pid}",
                f"fd:{number}",
                number,
            ]
            for form in forms:
                with NetNs.of(form) as opened, listen(("127.0.0.1", 0), netns=form) as listener:
                    assert opened.is_same(held)
                    assert opened.fileno() != number
                    with held.connect(listener.getsockname(), timeout=10):
                        pass
            assert held.fileno() == number, "none of them has closed it"
            assert os.fstat(number).st_ino == pod.inode
    finally:
        sleeper.communicate()


@pytest.mark.parametrize("what", [True, None, 1.5, object()])
def test_what_is_no_reference(what: object) -> None:
    with pytest.raises(TypeError):
        NetNs.of(what)  # type: ignore[arg-type]


GONE = [
    "no-such-netns",
    "/run/netns/no-such-netns",
    "pid:4194999",
    "fd:99999",
    99999,
    -1,
    "",
    "a\0b",
]


@pytest.mark.parametrize("reference", GONE)
def test_what_does_not_exist_is_gone_and_never_made(reference: str | int) -> None:
    before = pods.names()
    with pytest.raises(NetnsGone) as caught:
        listen(("127.0.0.1", 0), netns=reference)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.errno in (errno.ENOENT, errno.EBADF)
    assert repr(str(reference)).strip("'") in str(caught.value)
    assert pods.names() == before


def test_what_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotANetns, match=str(file)):
        listen(("127.0.0.1", 0), netns=file)
    with socket.socket() as sock, pytest.raises(NotANetns, match=f"fd:{sock.fileno()}"):
        listen(("127.0.0.1", 0), netns=sock.fileno())


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (None, "None is not a NetNs, a path"),
        (True, "True is not a NetNs"),
        (socket.socket, "socket_netns"),
    ],
)
def test_what_is_no_reference_is_told(what: object, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        NetNs.of(what)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"NetNs\.open"):
        NetNs("ns2")  # type: ignore[arg-type]


@pytest.mark.needs_named_netns
def test_a_path_object_is_a_path(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pathlib drops a leading `./`: Path("./x") must not become the name x."""
    monkeypatch.chdir(tmp_path)
    for made in (NetNs.of, NetNs.open):
        with pytest.raises(NetnsGone):
            made(Path(pod.name))  # type: ignore[arg-type]
        with made(Path(pod.path)) as opened:  # type: ignore[arg-type]
            assert opened.inode == pod.inode


def test_the_text_has_what_was_given() -> None:
    for given, text in {
        "fd:0099999": "fd:0099999: not open",
        "pid:04194999": "pid:04194999: no such process",
        "pid:x": "pid:x: not a number",
    }.items():
        with pytest.raises(NetnsGone, match=text):
            NetNs.open(given)


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    """Opening it would release a writer that waits for a reader, into a broken pipe."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = subprocess.Popen(["sh", "-c", f"echo hello >{fifo}"])
    try:
        with pytest.raises(NotANetns):
            NetNs.from_path(fifo)
        assert fifo.read_text() == "hello\n"
    finally:
        assert writer.wait() == 0


USES: list[Callable[[NetNs], object]] = [
    lambda netns: netns.fileno(),
    lambda netns: netns.cookie,
    lambda netns: netns.inode,
    lambda netns: netns.dev,
    lambda netns: netns.owner_uid,
    lambda netns: netns.listen(("127.0.0.1", 0)),
    lambda netns: netns.socket(),
    lambda netns: netns.connect(("127.0.0.1", 1)),
    lambda netns: netns.is_same(netns),
    NetNs.of,
    lambda netns: listen(("127.0.0.1", 0), netns=netns),
]


@pytest.mark.parametrize("use", USES)
def test_a_closed_one_raises(use: Callable[[NetNs], object]) -> None:
    netns = NetNs.create()
    _ = netns.cookie
    netns.close()
    netns.close()
    with pytest.raises(
        NetnsClosed, match=r"this NetNs is closed: \(unnamed, inode \d+\)"
    ) as caught:
        use(netns)
    assert caught.value.errno == errno.EBADF
    assert isinstance(caught.value, ValueError)
    assert netns.closed
    with pytest.raises(NetnsClosed), netns:
        pass
    assert repr(netns) == f"<NetNs {netns.reference} closed>"


def test_a_forgotten_one_closes_quietly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        number = NetNs.create().fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_neither_copies_nor_pickles(netns: NetNs) -> None:
    """Two owners of one number would close it twice."""
    with OwnedFd(os.dup(netns.fileno())) as owned:
        for each in (netns, owned):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError):
                    attempt(each)


# ---- close() beside a running call ---------------------------------------------------------------


def test_close_waits_for_no_call_and_takes_nothing_away(netns: NetNs) -> None:
    """Threads use one NetNs until it is closed under them; no socket lands in another netns.

    The numbers of closed descriptors are reused at once, by descriptors of another netns.
    """
    with NetNs.create() as trap:
        for _ in range(20):
            target = NetNs.of(netns)
            strays, uses = _use_until_closed(target, trap)
            assert strays == []
            assert uses > 0


def _use_until_closed(target: NetNs, trap: NetNs) -> tuple[list[int], int]:
    expected = target.inode
    strays: list[int] = []
    uses = [0]
    started = threading.Barrier(4)

    def use() -> None:
        started.wait()
        while True:
            try:
                (listener,) = target.listen(("127.0.0.1", 0))
            except NetnsClosed:
                return
            with listener:
                uses[0] += 1
                inode = _netns_inode(listener)
                if inode != expected:
                    strays.append(inode)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    while uses[0] < 30:
        os.sched_yield()
    target.close()
    reused = [os.dup(trap.fileno()) for _ in range(8)]
    for thread in threads:
        thread.join()
    for fd in reused:
        os.close(fd)
    return strays, uses[0]


def _netns_inode(sock: socket.socket) -> int:
    from pyztun import socket_netns

    with socket_netns(sock) as found:
        return found.inode


def test_a_lease_stays_what_it_is(netns: NetNs) -> None:
    target = NetNs.of(netns)
    with target.lease() as held:
        target.close()
        assert os.fstat(held.fileno()).st_ino == netns.inode
        with pytest.raises(NetnsClosed):
            target.socket()


# ---- create, remove ------------------------------------------------------------------------------


@pytest.mark.needs_named_netns
def test_a_created_name_outlives_the_block_until_removed() -> None:
    name = pods.unique_name()
    with NetNs.create(name) as lab:
        cookie = lab.cookie
    assert name in _ip_netns()
    with NetNs.from_name(name) as again:
        assert again.cookie == cookie
    lab.remove()
    assert name not in _ip_netns()
    lab.remove()
    lab.close()


@pytest.mark.needs_named_netns
def test_an_opened_name_can_be_removed() -> None:
    name = pods.unique_name()
    NetNs.create(name).close()
    NetNs.from_name(name).remove()
    assert name not in pods.names()


@pytest.mark.needs_named_netns
def test_a_name_that_means_another_netns_by_now_is_left_alone(make_pod: MakePod) -> None:
    pod = make_pod()
    with NetNs.open(pod.name) as old:
        pod.delete()
        subprocess.run(["ip", "netns", "add", pod.name], check=True)
        with pytest.raises(SyscallError, match="another netns"):
            old.remove()
    assert pod.exists
    old.close()


@pytest.mark.needs_named_netns
def test_several_remove_one_name_at_once() -> None:
    for _ in range(20):
        name = pods.unique_name()
        made = [NetNs.create(name), *(NetNs.from_name(name) for _ in range(2))]
        with ThreadPoolExecutor(3) as pool:
            for removal in [pool.submit(each.remove) for each in made]:
                removal.result()
        assert name not in pods.names()
        for each in made:
            each.close()


FIRST_NAMES = """
import mmap, os, subprocess
from pyztun import NetNs, native
def mounts():
    with open("/proc/self/mountinfo") as lines:
        return sum(line.split()[4] == "/run/netns" for line in lines)
hidden = mounts()  # that of the machine, below the tmpfs
shared = mmap.mmap(-1, 4)
def pin(netns, number, turn):
    if os.fork() == 0:
        shared[number] = turn
        while bytes(shared[:2]) != bytes([turn, turn]):
            pass
        native.pin_netns(netns.fileno(), "/run/netns", f"/run/netns/{number}")
        os._exit(0)
with NetNs.create() as netns:
    for turn in range(1, 60):
        for number in range(2):
            pin(netns, number, turn)
        assert [os.wait()[1] for _ in range(2)] == [0, 0]
        print(mounts() - hidden)
        while mounts() > hidden:
            subprocess.run(["umount", "--lazy", "/run/netns"], check=True)
        subprocess.run(["rm", "-r", "/run/netns"], check=True)
"""


@pytest.mark.needs_named_netns
def test_the_first_names_of_a_machine_at_once() -> None:
    """Each finds no mount on /run/netns; one of them makes it."""
    own_run = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs tmpfs /run; exec "$@"', "sh"]
    done = run_code(FIRST_NAMES, wrap=own_run)
    assert done.stderr == ""
    assert set(done.stdout.split()) == {"1"}


@pytest.mark.needs_named_netns
def test_a_removal_that_did_not_end_is_ended() -> None:
    name = pods.unique_name()
    with NetNs.create(name) as lab:
        subprocess.run(["umount", f"/run/netns/{name}"], check=True)
        lab.remove()
    assert name not in pods.names()


@pytest.mark.needs_named_netns
def test_a_name_that_is_no_text() -> None:
    name = f"{pods.unique_name()}-\udce9"
    with NetNs.create(name) as lab, NetNs.from_name(name) as again:
        assert again.is_same(lab)
    again.remove()
    assert name not in pods.names()
    for other in (b"x", ["x"]):
        with pytest.raises(TypeError):
            NetNs.create(other)  # type: ignore[arg-type]


@pytest.mark.needs_named_netns
def test_a_name_that_somebody_else_removed(make_pod: MakePod) -> None:
    pod = make_pod()
    with NetNs.open(pod.name) as old:
        pod.delete()
        old.remove()


def test_what_has_no_name_is_not_removed(netns: NetNs) -> None:
    netns.remove()
    assert netns.inode


@pytest.mark.needs_named_netns
def test_a_taken_name(pod: Pod) -> None:
    with pytest.raises(FileExistsError) as caught:
        NetNs.create(pod.name)
    assert isinstance(caught.value, SyscallError)
    assert f"{pod.path}: EEXIST (a netns of this name is there already)" in str(caught.value)


def _ip_netns() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]
