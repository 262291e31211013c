"""Fixtures for all tests: pods, the programs, the peers, and a check that each test cleans up."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("support")

from support import needs, peers, pods, privilege, programs  # noqa: E402
from support.agent import Agent  # noqa: E402
from support.project import Project, ordinary_user  # noqa: E402

SWITCH = "PYZTUN_REQUIRE_ROOT=1"
MARKERS = {
    "needs_netns": "can make a network namespace, enter it and set its loopback up",
    "needs_named_netns": "can do `ip netns add`",
    "needs_root": "is root and can become another user",
    "needs_userns": "a user without capabilities can make a user namespace",
    "needs_nft": "has the program nft",
}


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background ignores SIGINT for us, nohup SIGHUP; every program
    # that a test signals would inherit that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    privilege.use_a_temporary_directory_for_all()
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}; else skips ({SWITCH}: fails)")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in MARKERS:
        if item.get_closest_marker(name) is not None:
            needs.require(name)


@pytest.fixture(scope="session", autouse=True)
def _no_remains_of_killed_runs() -> None:
    pods.remove_remains()


@pytest.fixture
def make_pod() -> Iterator[Callable[[], pods.Pod]]:
    """A function that makes a pod: a netns with a unique name, deleted after the test."""
    needs.require("needs_named_netns")
    made: list[pods.Pod] = []

    def make() -> pods.Pod:
        made.append(pods.Pod())
        return made[-1]

    yield make
    for each in made:
        if each.exists:
            each.delete()


@pytest.fixture
def pod(make_pod: Callable[[], pods.Pod]) -> pods.Pod:
    """One pod."""
    return make_pod()


@pytest.fixture
def make_canary() -> Iterator[Callable[[pods.Pod], pods.Canary]]:
    """A function that watches over the death of a pod's netns; see pods.Canary."""
    with ExitStack() as stack:
        yield lambda watched: stack.enter_context(pods.Canary(watched))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short, private directory (0700): a socket path has 107 bytes, tmp_path may be longer."""
    path = tempfile.mkdtemp(prefix="pz-")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    """A directory that anyone may enter and, where uids can change, uid 4242 owns."""
    path = tempfile.mkdtemp(prefix="pz-")
    os.chmod(path, 0o755)
    if needs.root() is None:
        os.chown(path, needs.STRANGER, needs.STRANGER)
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def project(shared_directory: Path) -> Project:
    """A project with no file in it, which any user may read and uid 4242 may write."""
    return Project(shared_directory)


@pytest.fixture
def stranger() -> list[str]:
    """A command prefix: a user without rights, who may make a user namespace."""
    needs.require("needs_userns")
    return ordinary_user()


@pytest.fixture
def sock_path(directory: Path) -> str:
    """A free path for the receiver's socket."""
    return str(directory / "zt.sock")


@pytest.fixture
def start() -> Iterator[Callable[..., programs.Daemon]]:
    """A function that starts a Daemon with the given arguments; killed after the test."""
    with ExitStack() as stack:

        def begin(*args: str | os.PathLike[str], **options: Any) -> programs.Daemon:
            return stack.enter_context(programs.Daemon(*args, **options))

        yield begin


@pytest.fixture
def ztunnel(start: Callable[..., programs.Daemon], sock_path: str) -> programs.Daemon:
    """`pyztun-ztunnel` on sock_path, ready."""
    return start(sock_path)


@pytest.fixture
def agent(start: Callable[..., programs.Daemon], directory: Path) -> Agent:
    """`pyztun-cni agent`, ready; a pass over all workloads is a test's own to ask for."""
    made = Agent(directory, start)
    made.begin("--reconcile", "86400")
    return made


@pytest.fixture(scope="session")
def _built_peers() -> Iterator[Callable[[str], dict[str, Path]]]:
    built: dict[str, dict[str, Path]] = {}
    directory = tempfile.mkdtemp(prefix="pz-peers-")

    def build(language: str) -> dict[str, Path]:
        if language not in built:
            built[language] = peers.build(language, Path(directory))
        return built[language]

    yield build
    shutil.rmtree(directory)


@pytest.fixture(params=peers.LANGUAGES)
def seed_peers(
    request: pytest.FixtureRequest, _built_peers: Callable[[str], dict[str, Path]]
) -> dict[str, Path]:
    """The two peers of the walk-through, once in Go and once in C: name -> path of the program."""
    if peers.compiler(request.param) is None:
        pytest.skip(f"no compiler for {request.param}")
    return _built_peers(request.param)


@pytest.fixture
def only_sys_admin() -> list[str]:
    """A command prefix: uid 4242 with CAP_SYS_ADMIN and no other capability."""
    needs.require("needs_root")
    return privilege.only_sys_admin()


@pytest.fixture
def no_capability() -> list[str]:
    """A command prefix: a user (4242, if we are root) without any capability."""
    return privilege.no_capability()


@pytest.fixture
def own_userns() -> list[str]:
    """A command prefix: root of a fresh user namespace of a user without capabilities."""
    needs.require("needs_userns")
    return privilege.own_userns()
