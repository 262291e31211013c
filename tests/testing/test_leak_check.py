"""LeakCheck names every kind of thing that was left behind, and nothing else."""

import ctypes
import gc
import multiprocessing.shared_memory
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pyztun import NetNs
from pyztun.testing import LeakCheck, Leaked
from support import leaks, pods

PATIENCE = 0.1


@pytest.fixture
def check() -> Iterator[LeakCheck]:
    """A check that must find nothing any more at the end of the test."""
    made = LeakCheck(names=lambda name: pods.owner_of(name) == os.getpid())
    yield made
    assert made.leaks() == []


def test_descriptor(check: LeakCheck) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert check.leaks(PATIENCE) == [f"fd {fd} -> /dev/null"]
    os.close(fd)


def test_descriptor_with_another_file_under_an_old_number(check: LeakCheck) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    check.restart()
    other = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(other, fd)
    os.close(other)
    assert check.leaks(PATIENCE) == [f"fd {fd} -> /dev/zero"]
    os.close(fd)
    check.restart()


def test_socket_says_its_address(check: LeakCheck) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (line,) = check.leaks(PATIENCE)
        assert line.startswith(f"fd {server.fileno()} -> socket:[")
        assert line.endswith(f"] (AF_INET SOCK_STREAM 127.0.0.1:{port})")


def test_socket_in_another_netns(check: LeakCheck, netns: NetNs) -> None:
    check.restart()
    (listener,) = netns.listen(("::1", 15008))
    with listener:
        (line,) = check.leaks(PATIENCE)
        assert line.endswith(f"(AF_INET6 SOCK_STREAM [::1]:15008, in netns {netns.inode})")


@pytest.mark.needs_netns
def test_netns(check: LeakCheck) -> None:
    with NetNs.create() as made:
        wanted = f"fd {made.fileno()} -> net:[{made.inode}] (a netns)"
        assert check.leaks(PATIENCE) == [wanted]


@pytest.mark.needs_named_netns
def test_netns_by_name(check: LeakCheck, pod: pods.Pod) -> None:
    check.restart()
    fd = pod.open()
    assert check.leaks(PATIENCE) == [f"fd {fd} -> {pod.path} (netns {pod.inode})"]
    os.close(fd)


@pytest.mark.needs_named_netns
def test_name_in_run_netns(check: LeakCheck) -> None:
    pod = pods.Pod()
    assert LeakCheck(names=lambda name: name != pod.name).leaks(0) == []
    assert check.leaks(PATIENCE) == [pod.path]
    pod.delete()


@contextmanager
def waiting_thread(name: str) -> Iterator[threading.Thread]:
    """A thread that waits for the end of the block."""
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name=name)
    thread.start()
    try:
        yield thread
    finally:
        go_on.set()
        thread.join()


def test_thread(check: LeakCheck) -> None:
    with waiting_thread("forgotten") as thread:
        assert check.leaks(PATIENCE) == [f"thread 'forgotten' (tid {thread.native_id})"]


def test_thread_in_another_netns(check: LeakCheck, netns: NetNs) -> None:
    """Such as a worker that called setns() and did not come home."""
    libc = ctypes.CDLL(None, use_errno=True)
    with ThreadPoolExecutor(1, thread_name_prefix="stray") as pool:
        pool.submit(int).result()
        check.restart()
        fd = netns.fileno()
        assert pool.submit(lambda: libc.setns(fd, pods.CLONE_NEWNET)).result() == 0
        home = leaks.netns_inode()
        wanted = f"thread 'stray_0' is in netns {netns.inode}, was in {home}"
        assert check.leaks(PATIENCE) == [wanted]


def test_child(check: LeakCheck) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert f"child process {child.pid} (cat)" in check.leaks(PATIENCE)


def test_child_for_which_nobody_waited(check: LeakCheck) -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    wanted = f"child process {child.pid} (true, ended, nobody waited for it)"
    assert check.leaks(PATIENCE) == [wanted]
    child.wait()


def test_block_raises_and_names_it_all() -> None:
    expected = r"^left behind: fd \d+ -> /dev/null; fd \d+ -> /dev/zero$"
    with pytest.raises(Leaked, match=expected), LeakCheck(patience=PATIENCE):
        fds = [os.open(f"/dev/{name}", os.O_RDONLY) for name in ("null", "zero")]
    for fd in fds:
        os.close(fd)


def test_block_that_raises_keeps_its_own_error() -> None:
    opened: list[int] = []

    def fail() -> None:
        opened.append(os.open("/dev/null", os.O_RDONLY))
        raise KeyError

    with pytest.raises(KeyError), LeakCheck(patience=PATIENCE):
        fail()
    os.close(opened[0])


def test_what_only_a_cycle_holds_is_no_leak(check: LeakCheck) -> None:
    gc.disable()  # so that it does not come by chance
    try:
        file = open("/dev/null")  # noqa: SIM115
        cycle: list[object] = [file]
        cycle.append(cycle)
        del file, cycle
        with pytest.warns(ResourceWarning):
            assert check.leaks(PATIENCE) == []
    finally:
        gc.enable()


def test_helper_of_multiprocessing_is_no_leak() -> None:
    """In a process of its own: the helper would stay until the end of this one."""
    name = multiprocessing.shared_memory.__name__
    code = f"""
import {name}
from pyztun.testing import LeakCheck
with LeakCheck(patience=1):
    memory = {name}.SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
