"""`pyztun demo`: plays a story on pods of its own, and tells whether all was as told."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from typing import TYPE_CHECKING

from pyztun import stdio
from pyztun.errors import PyztunError, SyscallError

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pyztun.tools.play import Script

SUMMARY = "show a handoff, or with --zds a node, on pods of its own, with the evidence"
DESCRIPTION = """\
Makes two pods (network namespaces), starts pyztun-ztunnel, hands both over with pyztun-cni, and
shows after each step what the kernel says. With --zds: three pods, the node agent and ztunnel; pods
come, restart and go, and either program is killed. Leaves nothing behind. Needs root, or a user
namespace, with --zds one that has a /run of its own:

  unshare --user --map-root-user --net --mount pyztun demo
  unshare --user --map-root-user --net --mount \\
      sh -c 'mount -t tmpfs tmpfs /run && exec pyztun demo --zds'

Exit status: 0 if every observation was as told, 1 if not or if it could not run, 2 usage.
"""
NOT_PERMITTED = (errno.EPERM, errno.EACCES, errno.EROFS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--zds", action="store_true",
        help="show a node with its agent and ztunnel instead of single handoffs")  # fmt: skip
    add("--pause", action="store_true", help="wait for Enter before each step")
    add("--plain", action="store_true",
        help="no colour, no cursor control; the default where stdout is no terminal")  # fmt: skip


def run(asked: argparse.Namespace) -> int:
    """Runs the demo; returns the exit status."""
    from pyztun.tools.interrupts import Interrupts
    from pyztun.tools.play import play
    from pyztun.tools.terminal import Terminal, wants_plain

    if sys.stdout is None:
        return _fail("stdout is closed")
    interrupts = Interrupts()
    terminal = Terminal(sys.stdout, plain=asked.plain or wants_plain(sys.stdout))
    try:
        return play(_script(asked.zds), terminal, interrupts, pause=asked.pause)
    except BrokenPipeError:
        stdio.forget(sys.stdout)
        return 1
    except (PyztunError, OSError) as error:
        if isinstance(error, SyscallError) and error.errno in NOT_PERMITTED:
            return _fail(f"needs {_needs(asked.zds)} ({error})")
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted; everything is cleaned up")


def _script(zds: bool) -> Script[Any, Any]:
    if zds:
        from pyztun.tools import zds_script

        return zds_script.SCRIPT
    from pyztun.tools import seed_script

    return seed_script.SCRIPT


def _fail(reason: object) -> int:
    """One line on stderr, and the exit status."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        stdio.forget(sys.stdout)
    if sys.stderr is not None:
        sys.stderr.write(f"pyztun demo: {reason}\n")
    return 1


def _needs(zds: bool) -> str:
    """What to do, with a command line that needs no privilege, as it can be typed here."""
    us = os.path.realpath(sys.argv[0])
    on_path = os.path.realpath(shutil.which("pyztun") or "") == us
    command = f"{'pyztun' if on_path else us} demo"
    unshare = "unshare --user --map-root-user --net --mount"
    if not zds:
        return f"root, or a user namespace: {unshare} {command}"
    # A netns gets its name by a mount on /run/netns, and the machine's /run is the machine's.
    inside = f"sh -c 'mount -t tmpfs tmpfs /run && exec {command} --zds'"
    return f"root, or a user namespace with a /run of its own: {unshare} {inside}"
