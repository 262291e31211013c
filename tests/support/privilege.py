"""Command prefixes that run a program with less: one capability, none, or in a user namespace.

Another uid cannot run an interpreter that lies below a 0700 directory (a virtual environment in
root's home is one). The prefixes therefore start in a private mount namespace in which each such
directory is covered by a tmpfs with mode 0755 and what is needed is bound back at the same path.
Nothing of it is seen outside, and it goes with the process. Mount events still come in (slave), so
a netns that gets its name later is found.
"""

import shlex
import stat
import sys
import tempfile
from collections.abc import Iterable
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


def use_a_temporary_directory_for_all() -> None:
    """Lets tempfile use /tmp where TMPDIR is closed to others, as pam_tmpdir makes it for root.

    What runs as another user has its socket there, and notifies us there.
    """
    if _closed([Path(tempfile.gettempdir()) / "file"]):
        tempfile.tempdir = "/tmp"


def _uncover() -> str:
    """The shell script: open what is needed, cover what is closed, bind back by descriptor, go on.

    A path below the cover leads nowhere any more, /proc/self/fd/N still does; mount would make a
    path of it, hence --no-canonicalize.
    """
    needed = _needed()
    closed = _closed(needed)
    hidden = [path for path in needed if any(top in path.parents for top in closed)]
    assert len(hidden) <= 7, "a POSIX shell names descriptors by one digit, and 0 to 2 are taken"
    numbered = [(fd, shlex.quote(str(path))) for fd, path in enumerate(hidden, start=3)]
    lines = ["set -e", *(f"exec {fd}<{place}" for fd, place in numbered)]
    lines += [f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(str(top))}" for top in closed]
    for fd, place in numbered:
        lines.append(f"mkdir -p {place}")
        lines.append(f"mount --no-canonicalize --bind /proc/self/fd/{fd} {place}")
        lines.append(f"exec {fd}<&-")
    # The working directory may be a covered one.
    return "\n".join([*lines, "cd /", 'exec "$@"'])


def readable() -> list[str]:
    """A prefix (for root) behind which any user can run our programs at their own paths."""
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _uncover(), "sh"]


def only_sys_admin() -> list[str]:
    """A prefix (for root): uid 4242 with CAP_SYS_ADMIN and nothing else."""
    return readable() + ONLY_SYS_ADMIN


def no_capability() -> list[str]:
    """A prefix: uid 4242 without any capability; without root, whoever we are."""
    return [] if needs.root() is not None else readable() + needs.without_root()


def own_userns() -> list[str]:
    """A prefix: root of a user namespace made by a user without capabilities, with its own /run."""
    return [*no_capability(), "unshare", "-Urnm", *OWN_RUN]
