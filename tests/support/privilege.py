"""Command prefixes that run a program with less: one capability, none, or in a user namespace.

Another uid cannot run an interpreter that lies below a 0700 directory (a virtual environment in
root's home is one). The prefixes therefore start in a private mount namespace in which each such
directory is covered by a tmpfs with mode 0755 and what is needed is bound back at the same path.
Nothing of it is seen outside, and it goes with the process. Mount events still come in (slave), so
a netns that gets its name later is found.
"""

import os
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyztun
from support import REPOSITORY, needs

ONLY_SYS_ADMIN = [
    "setpriv",
    f"--reuid={needs.STRANGER}",
    f"--regid={needs.STRANGER}",
    "--clear-groups",
    "--inh-caps=-all,+sys_admin",
    "--ambient-caps=-all,+sys_admin",
    "--bounding-set=-all,+sys_admin",
]

OWN_RUN = ["sh", "-ec", 'mount -t tmpfs -o mode=0755 tmpfs /run; exec "$@"', "sh"]


def _needed() -> list[Path]:
    """What a child needs to run our programs: interpreter, packages, the package, the tree."""
    package = Path(pyztun.__file__).parent
    found = {Path(sys.base_prefix), Path(sys.prefix), package, REPOSITORY}
    found |= {path.resolve() for path in found}
    return [path for path in sorted(found) if not any(other in path.parents for other in found)]


def _closed(paths: Iterable[Path]) -> list[Path]:
    """The outermost directories above PATHS that others may not pass through."""
    found = {
        parent
        for path in paths
        for parent in path.parents
        if not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH
    }
    return [path for path in sorted(found) if not any(other in path.parents for other in found)]


def _uncover(stash: str) -> str:
    """The shell script: set aside what is needed, cover what is closed, bind back, go on."""
    needed = _needed()
    closed = _closed(needed)
    hidden = [path for path in needed if any(top in path.parents for top in closed)]
    lines = ["set -e", f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(stash)}"]
    for number, path in enumerate(hidden):
        aside = shlex.quote(f"{stash}/{number}")
        lines.append(f"mkdir {aside}; mount --bind {shlex.quote(str(path))} {aside}")
    lines += [f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(str(top))}" for top in closed]
    for number, path in enumerate(hidden):
        place = shlex.quote(str(path))
        lines.append(f"mkdir -p {place}; mount --bind {shlex.quote(f'{stash}/{number}')} {place}")
    # The working directory may be the covered one.
    lines += ["cd /", 'exec "$@"']
    return "\n".join(lines)


@contextmanager
def readable() -> Iterator[list[str]]:
    """A prefix (for root) behind which any user can run our programs at their own paths."""
    stash = tempfile.mkdtemp(prefix="pz-stash-")
    try:
        yield ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _uncover(stash), "sh"]
    finally:
        # Empty, since the mounts were in another namespace; never more than an empty directory.
        os.rmdir(stash)


@contextmanager
def only_sys_admin() -> Iterator[list[str]]:
    """A prefix (for root): uid 4242 with CAP_SYS_ADMIN and nothing else."""
    with readable() as prefix:
        yield prefix + ONLY_SYS_ADMIN


@contextmanager
def no_capability() -> Iterator[list[str]]:
    """A prefix: uid 4242 without any capability; without root, whoever we are."""
    if needs.root() is not None:
        yield []
        return
    with readable() as prefix:
        yield prefix + needs.without_root()


@contextmanager
def own_userns() -> Iterator[list[str]]:
    """A prefix: root of a user namespace made by a user without capabilities, with its own /run."""
    with no_capability() as prefix:
        yield [*prefix, "unshare", "-Urnm", *OWN_RUN]
