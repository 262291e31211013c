"""Who may ask: root, the daemon's own uid, and whoever --allow-uid names (SO_PEERCRED)."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support import wire
from support.needs import STRANGER
from support.pods import Pod
from support.programs import Daemon, cni
from support.zt_child import run_code
from support.zt_daemon import is_served, settled_fds, wait_until_fds_are

pytestmark = pytest.mark.needs_root
Start = Callable[..., Daemon]


@pytest.fixture
def open_path(directory: Path) -> str:
    """A socket path in a directory of root that everybody may enter."""
    directory.chmod(0o755)
    return str(directory / "zt.sock")


@contextmanager
def as_uid(uid: int) -> Iterator[None]:
    """The calling process connects as that uid (SO_PEERCRED is taken at connect)."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_stranger_is_refused_with_the_reason_for_each_netns(
    pod: Pod, start: Start, open_path: str, no_capability: list[str]
) -> None:
    daemon = start(open_path, "--mode", "0666")
    before = settled_fds(daemon, open_path)
    for _ in range(5):
        done = cni(open_path, pod.path, pod.path, pod.path, wrap=no_capability)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 3, done.stderr
        for line in done.stderr.splitlines():
            assert f"uid {STRANGER} may not ask" in line
    assert pod.listening() == set()
    assert cni(open_path, pod.path).returncode == 0
    cni(open_path, "--release", pod.path)
    wait_until_fds_are(daemon, before)


def test_a_stranger_that_is_allowed(
    pod: Pod, start: Start, open_path: str, no_capability: list[str]
) -> None:
    start(open_path, "--mode", "0666", "--allow-uid", "7", "--allow-uid", str(STRANGER))
    done = cni(open_path, pod.path, wrap=no_capability)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n", "")


def test_the_mode_of_the_file_keeps_a_stranger_out(
    pod: Pod, start: Start, open_path: str, no_capability: list[str]
) -> None:
    start(open_path, "--allow-uid", str(STRANGER))
    done = cni(open_path, pod.path, wrap=no_capability)
    assert done.returncode == 1
    assert done.stderr == f"pyztun-cni: connect {open_path}: EACCES\n"


def test_a_group_lets_its_members_in(
    pod: Pod, start: Start, open_path: str, no_capability: list[str]
) -> None:
    start(open_path, "--allow-uid", str(STRANGER), "--group", str(STRANGER), "--mode", "0660")
    assert cni(open_path, pod.path, wrap=no_capability).returncode == 0


def test_a_daemon_without_root_serves_itself_and_root_alone(
    pod: Pod, start: Start, shared_directory: Path, only_sys_admin: list[str]
) -> None:
    path = str(shared_directory / "zt.sock")
    start(path, "--mode", "0666", wrap=only_sys_admin)
    assert wire.request(path, wire.LIST) == "end"
    with as_uid(STRANGER):
        assert wire.request(path, wire.LIST) == "end"
    with as_uid(STRANGER + 1), wire.Peer(path) as peer:
        # Not a word: the refusal comes at once, and behind it a request would find a closed socket.
        assert peer.lines() == [f"error uid {STRANGER + 1} may not ask"]


CONNECTS_AND_STAYS = """
import socket, sys
null = open("/dev/null")
for _ in range(3000):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(sys.argv[1])
        try:
            socket.send_fds(peer, [b"\\x01"], [null.fileno()] * 250)
        except OSError:
            pass
"""


@pytest.mark.slow
def test_a_flood_of_strangers_costs_the_others_nothing(
    start: Start, open_path: str, no_capability: list[str]
) -> None:
    """With every seat taken by those who may ask, not one of them loses it to a stranger."""
    daemon = start(open_path, "--mode", "0666", "--max-peers", "8")
    before = settled_fds(daemon, open_path)
    with ExitStack() as stack:
        seated = [stack.enter_context(wire.Peer(open_path)) for _ in range(8)]
        for peer in seated:
            assert peer.ask(wire.LIST) == "end"
        done = run_code(CONNECTS_AND_STAYS, open_path, wrap=no_capability)
        assert (done.returncode, done.stderr) == (0, "")
        for peer in seated:
            assert peer.ask(wire.LIST) == "end"
    is_served(open_path)
    wait_until_fds_are(daemon, before)
    daemon.stop()
    assert len(daemon.stderr.all()) < 20, "denials are counted, not repeated"
