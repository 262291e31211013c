"""fork() in one thread while another is away in a pod.

A child has a copy of the thread that forked and of no other: it is where that one was, at home. The
descriptors that the excursion had open at that moment are in the child too, as fork() copies all;
a program that the child executes has none of them.
"""

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pyztun import NetNs, native
from support import leaks

pytestmark = pytest.mark.needs_netns
FORKS = 32
ADDRESSES = (("127.0.0.1", 0), ("::1", 0), ("127.0.0.1", 0))


def thread_netns() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


@contextmanager
def busy(work: Callable[[], None]) -> Iterator[list[str]]:
    """A thread that does WORK again and again; the list gets what was wrong."""
    wrong: list[str] = []
    started, over = threading.Event(), threading.Event()
    home = thread_netns()

    def body() -> None:
        while not over.is_set() and not wrong:
            try:
                work()
            except Exception as error:
                wrong.append(repr(error))
            if thread_netns() != home:
                wrong.append("the thread is not at home")
            started.set()

    thread = threading.Thread(target=body)
    thread.start()
    started.wait(10)
    try:
        yield wrong
    finally:
        over.set()
        thread.join()


def fork() -> int:
    """Python 3.12 and later warn of threads, which are what this is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def code_of_child(check: Callable[[], int]) -> int:
    """Forks; the child ends with what CHECK returns, 99 for an exception."""
    pid = fork()
    if pid == 0:
        code = 99
        try:
            code = check()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def pod() -> Iterator[NetNs]:
    with NetNs.create() as made:
        assert made.cookie > 0
        yield made


def listen_once(pod: NetNs) -> None:
    for each in pod.listen(*ADDRESSES):
        assert native.socket_cookie(each.fileno()) == pod.cookie
        each.close()


def test_a_child_is_at_home_and_can_go_itself(pod: NetNs) -> None:
    """Its only thread is its main thread now, and goes by a helper."""
    home = thread_netns()

    def check() -> int:
        if thread_netns() != home or leaks.netns_inode() != home or len(leaks.threads()) != 1:
            return 1
        made = pod.listen(*ADDRESSES)
        if {native.socket_cookie(each.fileno()) for each in made} != {pod.cookie}:
            return 2
        return 0 if thread_netns() == home else 3

    with busy(lambda: listen_once(pod)) as wrong:
        assert [code_of_child(check) for _ in range(FORKS)] == [0] * FORKS
    assert wrong == []
    assert thread_netns() == home


def test_a_child_can_use_what_another_thread_uses(pod: NetNs) -> None:
    """Also where that one held the lock of the NetNs at the moment of the fork."""

    def check() -> int:
        with pod.socket() as made:
            return 0 if native.socket_cookie(made.fileno()) == pod.cookie else 1

    with busy(lambda: pod.socket().close()) as wrong:
        assert [code_of_child(check) for _ in range(FORKS)] == [0] * FORKS
    assert wrong == []


def test_a_child_that_closes_it_has_closed_it(pod: NetNs) -> None:
    """Whatever call another thread of the parent had running at the fork."""

    def check() -> int:
        number = pod.fileno()
        pod.close()
        try:
            os.fstat(number)
        except OSError:
            return 0
        return 1

    with busy(lambda: listen_once(pod)) as wrong:
        assert [code_of_child(check) for _ in range(FORKS)] == [0] * FORKS
    assert wrong == []


def test_children_of_a_worker_while_the_main_thread_listens(pod: NetNs) -> None:
    """The main thread's helper is away while a worker forks: the child is a copy of the worker."""
    home = thread_netns()

    def fork_one() -> None:
        assert code_of_child(lambda: 0 if thread_netns() == home else 1) == 0

    with busy(fork_one) as wrong:
        for _ in range(FORKS * 4):
            listen_once(pod)
    assert wrong == []
    assert thread_netns() == home


LIST = """
import json, os
print(json.dumps([fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2]))
print(os.stat("/proc/self/ns/net").st_ino)
"""


def list_in_child() -> tuple[list[int], int]:
    """The descriptors above 2 that an executed program finds, and its netns."""
    argv = [sys.executable, "-I", "-S", "-c", LIST]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, close_fds=False)
    fds, netns = done.stdout.splitlines()
    found: list[int] = json.loads(fds)
    return found, int(netns)


def test_an_executed_program_has_no_descriptor_of_an_excursion(pod: NetNs) -> None:
    """Every one of them is close-on-exec from birth, so no moment between is open to a fork()."""
    home = thread_netns()
    inherited, _ = list_in_child()
    with busy(lambda: listen_once(pod)) as wrong:
        for _ in range(FORKS // 2):
            assert list_in_child() == (inherited, home)
    assert wrong == []
