"""`pyztun demo`: plays a story on pods of its own, and tells whether all was as told."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pyztun import stdio
from pyztun.errors import PyztunError, SyscallError

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pyztun.tools.play import Script

SUMMARY = "show a handoff, a node or a captured pod, on pods of its own, with the evidence"
DESCRIPTION = """\
Makes two pods (network namespaces), starts pyztun-ztunnel, hands both over with pyztun-cni, and
shows after each step what the kernel says. With --zds: three pods, the node agent and ztunnel; pods
come, restart and go, and either program is killed. With --capture: a web server in one pod, its
client in the other, and rules that redirect what is between them; ztunnel is killed, the rules are
flushed. That one needs nft and ip (packages nftables, iproute2). Leaves nothing behind. Needs root,
or a user namespace, with --zds or --capture one that has a /run of its own:

  unshare --user --map-root-user --net --mount pyztun demo
  unshare --user --map-root-user --net --mount \\
      sh -c 'mount -t tmpfs tmpfs /run && exec pyztun demo --zds'

Exit status: 0 if every observation was as told, 1 if not or if it could not run, 2 usage.
"""
NOT_PERMITTED = (errno.EPERM, errno.EACCES, errno.EROFS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    forms = parser.add_mutually_exclusive_group()
    add = forms.add_argument
    add("--zds", dest="form", action="store_const", const="zds", default="seed",
        help="show a node with its agent and ztunnel instead of single handoffs")  # fmt: skip
    add("--capture", dest="form", action="store_const", const="capture",
        help="show two pods whose traffic goes through ztunnel")  # fmt: skip
    add = parser.add_argument
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
        return play(_script(asked.form), terminal, interrupts, pause=asked.pause)
    except BrokenPipeError:
        stdio.forget(sys.stdout)
        return 1
    except (PyztunError, OSError) as error:
        if isinstance(error, SyscallError) and error.errno in NOT_PERMITTED:
            return _fail(f"needs {_needs(asked.form)} ({error})")
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted; everything is cleaned up")


def _script(form: str) -> Script[Any, Any]:
    """Its modules are imported only where they are played."""
    script: Script[Any, Any] = import_module(f"pyztun.tools.{form}_script").SCRIPT
    return script


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


def _needs(form: str) -> str:
    """What to do, with a command line that needs no privilege, as it can be typed here."""
    us = os.path.realpath(sys.argv[0])
    on_path = os.path.realpath(shutil.which("pyztun") or "") == us
    command = f"{'pyztun' if on_path else us} demo"
    unshare = "unshare --user --map-root-user --net --mount"
    if form == "seed":
        return f"root, or a user namespace: {unshare} {command}"
    # A netns gets its name by a mount on /run/netns, and the machine's /run is the machine's.
    inside = f"sh -c 'mount -t tmpfs tmpfs /run && exec {command} --{form}'"
    return f"root, or a user namespace with a /run of its own: {unshare} {inside}"
