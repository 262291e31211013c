"""SocketFile: what may be at the path, what must not, and who may own the directory."""

import grp
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pyztun.socketfile import SocketFile, SocketFileError
from support import needs, programs

STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET


@pytest.fixture
def listen() -> Iterator[Callable[..., SocketFile]]:
    """SocketFile.listen() whose result is closed after the test."""
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(closing(SocketFile.listen(*args, **named)))


def stale(path: str, kind: int = STREAM) -> os.stat_result:
    """A socket file that nobody answers on."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)
        if kind != socket.SOCK_DGRAM:
            dead.listen()
    return os.lstat(path)


def connects(path: str, kind: int = STREAM) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.settimeout(5)
        return client.connect_ex(path) == 0


def refused(path: str, *args: object) -> str:
    """The text with which PATH is refused; nothing at the path or beside it may have changed."""
    directory = os.path.dirname(path)
    before = {name: os.lstat(f"{directory}/{name}").st_ino for name in os.listdir(directory)}
    with pytest.raises(SocketFileError) as caught:
        SocketFile.listen(path, *args).close()  # type: ignore[arg-type]
    after = {name: os.lstat(f"{directory}/{name}").st_ino for name in os.listdir(directory)}
    assert after == before
    return str(caught.value)


# ---- the file ------------------------------------------------------------------------------------


def test_made_and_removed(sock_path: str, listen: Callable[..., SocketFile]) -> None:
    made = listen(sock_path)
    found = os.lstat(sock_path)
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    assert connects(sock_path)
    assert not os.get_inheritable(made.socket.fileno())
    made.close()
    assert os.listdir(os.path.dirname(sock_path)) == []
    made.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
def test_mode_does_not_depend_on_the_umask_and_restores_it(
    sock_path: str, listen: Callable[..., SocketFile], mode: int, umask: int
) -> None:
    previous = os.umask(umask)
    try:
        listen(sock_path, mode=mode)
        assert stat.S_IMODE(os.lstat(sock_path).st_mode) == mode
    finally:
        assert os.umask(previous) == umask


@pytest.mark.needs_root
def test_group(sock_path: str, listen: Callable[..., SocketFile]) -> None:
    listen(sock_path, mode=0o660, group=needs.STRANGER)
    found = os.lstat(sock_path)
    assert (found.st_uid, found.st_gid) == (0, needs.STRANGER)
    assert stat.S_IMODE(found.st_mode) == 0o660


def test_a_group_that_we_may_not_give_is_refused_by_name(
    shared_directory: Path, only_sys_admin: list[str]
) -> None:
    """chown() to a group that is not ours needs CAP_CHOWN; the file must not stay behind."""
    path = shared_directory / "zt.sock"
    group = grp.getgrgid(0).gr_name
    done = programs.run_program("pyztun-ztunnel", path, "--group", group, wrap=only_sys_admin)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(path) in done.stderr
    assert not os.path.lexists(path)


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET, socket.SOCK_DGRAM])
def test_a_stale_socket_is_replaced(
    sock_path: str, listen: Callable[..., SocketFile], kind: int
) -> None:
    old = stale(sock_path, kind)
    listen(sock_path)
    assert os.lstat(sock_path).st_ctime_ns > old.st_ctime_ns
    assert connects(sock_path)
    assert os.listdir(os.path.dirname(sock_path)) == ["zt.sock"]


def test_a_live_owner_is_refused(sock_path: str, listen: Callable[..., SocketFile]) -> None:
    listen(sock_path)
    text = refused(sock_path)
    assert text == f"{sock_path} is in use: another process answers there"
    assert connects(sock_path)


def test_a_live_owner_with_a_full_backlog_is_refused(
    sock_path: str, listen: Callable[..., SocketFile]
) -> None:
    listen(sock_path, backlog=0)
    with ExitStack() as stack:
        for _ in range(5):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(sock_path)
        assert "in use" in refused(sock_path)


@pytest.mark.parametrize("kind", [SEQPACKET, socket.SOCK_DGRAM])
def test_a_live_owner_of_another_type_is_refused(sock_path: str, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(sock_path)
        if kind == SEQPACKET:
            other.listen()
        text = refused(sock_path)
    assert text.startswith(f"{sock_path} is in use")


def test_a_regular_file_and_a_directory_are_refused_by_name(sock_path: str) -> None:
    Path(sock_path).write_text("precious")
    assert refused(sock_path).startswith(f"{sock_path} exists and is not a socket")
    assert Path(sock_path).read_text() == "precious"
    os.unlink(sock_path)
    os.mkdir(sock_path)
    assert refused(sock_path).startswith(f"{sock_path} exists and is not a socket")


@pytest.mark.parametrize("target", ["nowhere", "stale.sock", "file"])
def test_a_symlink_is_refused_by_name_and_not_followed(sock_path: str, target: str) -> None:
    directory = Path(sock_path).parent
    stale(str(directory / "stale.sock"))
    (directory / "file").touch()
    os.symlink(target, sock_path)
    assert refused(sock_path).startswith(f"{sock_path} exists and is a symlink")


# ---- its removal ---------------------------------------------------------------------------------


def test_another_socket_at_the_path_is_not_removed(
    sock_path: str, listen: Callable[..., SocketFile]
) -> None:
    mine = listen(sock_path)
    os.unlink(sock_path)
    listen(sock_path)
    mine.close()
    assert connects(sock_path)


def test_another_file_at_the_path_is_not_removed(
    sock_path: str, listen: Callable[..., SocketFile]
) -> None:
    mine = listen(sock_path)
    os.unlink(sock_path)
    Path(sock_path).write_text("precious")
    mine.close()
    assert Path(sock_path).read_text() == "precious"


def test_a_path_that_is_gone_is_no_error(sock_path: str, listen: Callable[..., SocketFile]) -> None:
    mine = listen(sock_path)
    os.unlink(sock_path)
    mine.close()


def test_remove_keeps_what_is_queued(sock_path: str, listen: Callable[..., SocketFile]) -> None:
    mine = listen(sock_path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sock_path)
        client.send(b"x")
        mine.remove()
        assert not connects(sock_path)
        peer, _ = mine.socket.accept()
        with peer:
            assert peer.recv(10) == b"x"


# ---- the directory -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500, 0o1777, 0o1770, 0o3777])
def test_directories_that_are_safe(
    directory: Path, listen: Callable[..., SocketFile], mode: int
) -> None:
    inner = directory / "run"
    inner.mkdir()
    inner.chmod(mode)
    if os.geteuid() != 0 and not mode & 0o200:
        pytest.skip("only root writes into a directory without w")
    listen(str(inner / "zt.sock"))


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o2775, 0o702])
def test_directories_in_which_others_could_replace_the_socket(directory: Path, mode: int) -> None:
    inner = directory / "run"
    inner.mkdir()
    inner.chmod(mode)
    text = refused(str(inner / "zt.sock"))
    assert text.startswith(f"{inner} is writable for others")
    assert f"chmod go-w {inner}" in text


@pytest.mark.needs_root
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_directory_of_another_user_is_refused(directory: Path, mode: int) -> None:
    """Its owner may replace what is in it, sticky or not."""
    inner = directory / "run"
    inner.mkdir()
    inner.chmod(mode)
    os.chown(inner, needs.STRANGER, needs.STRANGER)
    assert refused(str(inner / "zt.sock")).startswith(f"{inner} belongs to uid {needs.STRANGER}")


def test_a_directory_that_is_none(directory: Path) -> None:
    (directory / "file").touch()
    for name, why in (("missing", "No such file"), ("file", "not a directory")):
        with pytest.raises(SocketFileError, match=why) as caught:
            SocketFile.listen(f"{directory}/{name}/zt.sock")
        assert str(directory / name) in str(caught.value)


def test_a_name_without_a_directory_is_in_the_working_directory(
    directory: Path, listen: Callable[..., SocketFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    mine = listen("zt.sock")
    assert connects(str(directory / "zt.sock"))
    mine.close()
    assert list(directory.iterdir()) == []


LONG = "x" * 120


def test_a_path_too_long_is_one_line(directory: Path) -> None:
    """sun_path has 108 bytes."""
    assert f"{directory}/{LONG}" in refused(f"{directory}/{LONG}")


def test_a_stale_socket_at_a_path_too_long_is_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be there: bound by a shorter relative path. connect() to it cannot even be tried."""
    inner = directory / LONG
    inner.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(inner)
        stale("zt.sock")
    assert str(inner) in refused(str(inner / "zt.sock"))


UNPRIVILEGED = """
import sys
from pyztun.errors import PyztunError
from pyztun.socketfile import SocketFile
try:
    SocketFile.listen(sys.argv[1])
except PyztunError as error:
    print("refused", error)
else:
    print("listening")
"""


def unprivileged(path: Path, prefix: list[str]) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", UNPRIVILEGED, str(path)],
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.needs_root
def test_another_users_stale_socket_in_a_sticky_directory(
    directory: Path, no_capability: list[str]
) -> None:
    """In /tmp a file can be removed by its owner alone: refused in one line, not by a traceback."""
    directory.chmod(0o1777)
    path = directory / "zt.sock"
    stale(str(path))
    path.chmod(0o666)
    told = unprivileged(path, no_capability)
    assert told.startswith(f"refused {path}")
    assert told.count("\n") == 1
    assert os.listdir(directory) == ["zt.sock"]


@pytest.mark.needs_root
def test_a_directory_that_may_be_written_but_not_read(
    shared_directory: Path, no_capability: list[str]
) -> None:
    shared_directory.chmod(0o300)
    told = unprivileged(shared_directory / "zt.sock", no_capability)
    shared_directory.chmod(0o755)
    assert told.startswith(("listening", f"refused {shared_directory}"))
    assert told.count("\n") == 1


@pytest.mark.needs_root
def test_a_directory_that_may_not_be_written(directory: Path, no_capability: list[str]) -> None:
    directory.chmod(0o755)
    told = unprivileged(directory / "zt.sock", no_capability)
    assert told == f"refused {directory}/zt.sock: Permission denied\n"


RACER = """
import sys
from pyztun.socketfile import SocketFile, SocketFileError
print("go", flush=True)
sys.stdin.readline()
try:
    mine = SocketFile.listen(sys.argv[1])
except SocketFileError as error:
    print("refused", error, flush=True)
else:
    print("listening", flush=True)
    sys.stdin.readline()
    mine.close()
"""


def test_of_many_that_start_at_once_one_listens(sock_path: str) -> None:
    stale(sock_path)
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RACER, sock_path],
                    env=programs.environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )
            for _ in range(6)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "go\n"
        told = []
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
        for racer in racers:
            assert racer.stdout is not None
            told.append(racer.stdout.readline())
        assert connects(sock_path)
        for racer in racers:
            racer.communicate("\n", timeout=20)
    assert sorted(line.split()[0] for line in told) == ["listening"] + ["refused"] * 5
    assert os.listdir(os.path.dirname(sock_path)) == []
