"""ENOSPC and EROFS: no room for the socket's file, or for the name of a netns.

Each program runs in a mount namespace of its own, in which the directory is a tmpfs without an
inode to spare, or read-only. What it left there is listed before that namespace ends.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import programs

pytestmark = pytest.mark.needs_netns
UNSHARE = ["unshare", "--mount", "--propagation", "private", "--"]
RUN_IN = """
directory=$1 way=$2
shift 2
case $way in
    full) mount -t tmpfs -o size=4k,nr_inodes=1,mode=0755 none "$directory" ;;
    read-only) mount -t tmpfs -o ro,mode=0755 none "$directory" ;;
    bound) mount --bind "$directory" "$directory" &&
        mount -o remount,bind,ro "$directory" ;;
esac || exit 99
"$@"
code=$?
echo "left: $(ls -A "$directory")"
exit $code
"""
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "bound": errno.EROFS}


def run_in(directory: str, way: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    """Runs ARGV with DIRECTORY prepared; its stdout ends with what is left there."""
    return subprocess.run(
        [*UNSHARE, "sh", "-c", RUN_IN, "sh", directory, way, *argv],
        env=programs.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("way", ERRORS)
def test_no_room_for_the_socket(directory: Path, way: str) -> None:
    path = str(directory / "zt.sock")
    done = run_in(str(directory), way, *programs.program("pyztun-ztunnel"), path)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "left: \n"
    (line,) = done.stderr.splitlines()
    assert path in line
    assert os.strerror(ERRORS[way]) in line or errno.errorcode[ERRORS[way]] in line
    assert list(directory.iterdir()) == []


def test_a_socket_left_behind_on_a_read_only_file_system(directory: Path) -> None:
    """A dead socket is there and cannot be replaced."""
    path = str(directory / "zt.sock")
    first = programs.Daemon(path)
    first.kill()
    assert os.path.lexists(path)
    done = run_in(str(directory), "bound", *programs.program("pyztun-ztunnel"), path)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert path in line
    assert os.strerror(errno.EROFS) in line
    assert done.stdout == "left: zt.sock\n"


CREATE = """
import os
from pyztun import NetNs, PyztunError
before = sorted(os.listdir("/proc/self/fd"))
try:
    NetNs.create("pyztun-no-room")
except OSError as error:
    print(type(error).__name__, error.errno, error)
    assert isinstance(error, PyztunError)
assert sorted(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("way", ERRORS)
def test_no_room_for_the_name_of_a_netns(way: str) -> None:
    if way == "bound" and os.listdir("/run/netns"):
        way = "read-only"  # others' namespaces would be listed as left
    done = run_in("/run/netns", way, sys.executable, "-c", CREATE)
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert left == "left: "
    assert said.split()[1] == str(ERRORS[way])
    assert "/run/netns/pyztun-no-room" in said
    assert errno.errorcode[ERRORS[way]] in said


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("way", ["full", "read-only"])
def test_no_room_for_the_directory_of_names(way: str) -> None:
    """/run itself, in which /run/netns is missing."""
    done = run_in("/run", way, sys.executable, "-c", CREATE)
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert left == "left: "
    assert said.split()[1] == str(ERRORS[way])
    assert "mkdir" in said
