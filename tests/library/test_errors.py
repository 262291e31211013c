"""What an error says: the syscall, the object, the errno by name, and what is missing."""

import errno
import os

import pytest

from pyztun import (
    AddressInUse,
    MissingCapability,
    NetNs,
    NetnsError,
    NotANetns,
    PyztunError,
    SyscallError,
)
from pyztun.errors import explain
from support import pods, privilege
from support.zt_child import NO_CAPABILITY, run_code

TEXTS = [
    (errno.EPERM, "setns", "/run/netns/x", MissingCapability, "needs CAP_SYS_ADMIN"),
    (errno.EPERM, "setns(home)", "x", MissingCapability, "the way back from a pod"),
    (errno.EPERM, "unshare(CLONE_NEWNET)", "x", MissingCapability, "needs CAP_SYS_ADMIN"),
    (errno.EACCES, "bind", "127.0.0.1:80 in x", MissingCapability, "CAP_NET_BIND_SERVICE"),
    (errno.EPERM, "setsockopt(SO_MARK)", "x", MissingCapability, "CAP_NET_ADMIN"),
    (errno.EPERM, "setsockopt(IP_TRANSPARENT)", "x", MissingCapability, "CAP_NET_RAW"),
    (errno.EADDRINUSE, "bind", "127.0.0.1:80 in x", AddressInUse, "EADDRINUSE"),
    (errno.EADDRNOTAVAIL, "bind", "10.0.0.1:80 in x", SyscallError, "no interface"),
    (errno.EMFILE, "socket", "x", SyscallError, "RLIMIT_NOFILE"),
    (errno.ENFILE, "open", "x", SyscallError, "fs.file-max"),
    (errno.ENOSPC, "unshare(CLONE_NEWNET)", "x", SyscallError, "user.max_net_namespaces"),
    (errno.EIO, "read", "x", SyscallError, "EIO"),
    (5000, "read", "x", SyscallError, "errno 5000"),
]


@pytest.mark.parametrize(("number", "syscall", "subject", "kind", "part"), TEXTS)
def test_text_and_kind(
    number: int, syscall: str, subject: str, kind: type[SyscallError], part: str
) -> None:
    error = explain(number, syscall, subject)
    assert type(error) is kind
    assert error.errno == number
    assert isinstance(error, OSError)
    assert isinstance(error, PyztunError)
    assert str(error).startswith(f"{syscall} {subject}: {errno.errorcode.get(number, 'errno')}")
    assert part in str(error)
    assert "\n" not in str(error)


def test_os_error_families() -> None:
    assert issubclass(MissingCapability, PermissionError)
    assert issubclass(MissingCapability, NetnsError)
    with pytest.raises(PermissionError):
        raise explain(errno.EPERM, "setns", "x")


CHILD = """
import sys
from pyztun import NetNs, PyztunError
from threading import Thread

def attempt():
    try:
        {what}
    except PyztunError as error:
        print(type(error).__name__, error.errno, error)

attempt()
thread = Thread(target=attempt)
thread.start()
thread.join()
"""

WITHOUT = [
    ("NetNs.open(sys.argv[1]).listen(('127.0.0.1', 15008))", "setns"),
    ("NetNs.create()", "unshare"),
]


@pytest.mark.needs_netns
@pytest.mark.parametrize(("what", "syscall"), WITHOUT)
def test_without_any_capability(what: str, syscall: str) -> None:
    """On the main thread (through a helper thread) and on any other one."""
    netns = pods.nameless_netns()
    try:
        done = run_code(
            CHILD.format(what=what),
            f"fd:{netns}",
            wrap=[*privilege.readable(), *NO_CAPABILITY],
            pass_fds=[netns],
        )
    finally:
        os.close(netns)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("MissingCapability 1 ")
        assert "CAP_SYS_ADMIN" in line
    assert syscall in lines[0]


MARKS = """
import sys
from pyztun import MissingCapability, NetNs
with NetNs.open(sys.argv[1]) as netns:
    for options in ({"mark": 7}, {"transparent": True}):
        try:
            netns.listen(("127.0.0.1", 15008), **options)
        except MissingCapability as error:
            print(error)
    try:
        netns.listen(("127.0.0.1", 80))
    except MissingCapability as error:
        print(error)
    for each in netns.listen(("127.0.0.1", 15008), freebind=True):
        each.close()
        print("listening")
"""


@pytest.mark.needs_netns
def test_with_cap_sys_admin_alone_each_error_names_what_else_it_needs() -> None:
    wrap = ["setpriv", "--inh-caps=-all,+sys_admin", "--bounding-set=-all,+sys_admin"]
    netns = pods.nameless_netns()
    try:
        done = run_code(MARKS, f"fd:{netns}", wrap=[*privilege.readable(), *wrap], pass_fds=[netns])
    finally:
        os.close(netns)
    assert (done.returncode, done.stderr) == (0, "")
    mark, transparent, low_port, last = done.stdout.splitlines()
    assert mark.startswith(f"setsockopt(SO_MARK) 127.0.0.1:15008 in netns fd:{netns}: EPERM")
    assert "CAP_NET_ADMIN" in mark
    assert transparent.startswith("setsockopt(IP_TRANSPARENT)")
    assert low_port.startswith(f"bind 127.0.0.1:80 in netns fd:{netns}: EACCES")
    assert "CAP_NET_BIND_SERVICE" in low_port
    assert last == "listening"


def test_a_closed_netns_is_told_before_the_kernel_is_asked() -> None:
    netns = NetNs.current()
    netns.close()
    netns.close()
    with pytest.raises(ValueError, match="is closed: current"):
        netns.listen(("127.0.0.1", 15008))


def test_not_a_netns_keeps_the_reference() -> None:
    with pytest.raises(NotANetns, match=r"^fd:0: not a network namespace$"):
        NetNs.from_fd(0)
