"""What the host allows. Each probe does the real thing once and returns why it failed, or None."""

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

STRANGER = 4242
"""A uid and gid without an account, for whatever must run without root."""

INITIAL_UID_MAP = ["0", "0", "4294967295"]


def _try(*argv: str) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    if done.returncode == 0:
        return None
    return f"`{' '.join(argv)}`: {done.stderr.strip() or f'exit {done.returncode}'}"


def in_user_namespace() -> bool:
    """Whether this process is in another user namespace than the initial one."""
    return Path("/proc/self/uid_map").read_text().split() != INITIAL_UID_MAP


@functools.cache
def netns() -> str | None:
    """Making a netns, entering it and setting its loopback up: CAP_SYS_ADMIN and CAP_NET_ADMIN."""
    return _try("unshare", "--net", "ip", "link", "set", "lo", "up")


@functools.cache
def named_netns() -> str | None:
    """`ip netns add`: besides that, mounting on /run/netns."""
    if why := netns():
        return why
    give_userns_a_run()
    name = f"pz{os.getpid()}-probe"
    return _try("ip", "netns", "add", name) or _try("ip", "netns", "delete", name)


@functools.cache
def root() -> str | None:
    """Root that can become another user: uid 0 in a namespace that maps more than uid 0."""
    if why := netns():
        return why
    if os.geteuid() != 0:
        return f"needs root, runs as uid {os.geteuid()}"
    stranger = f"--reuid={STRANGER}", f"--regid={STRANGER}"
    return _try("setpriv", *stranger, "--clear-groups", "true")


@functools.cache
def userns() -> str | None:
    """User namespaces for those without a capability; some distributions forbid them."""
    why = _try(*without_root(), "unshare", "-Urnm", "true")
    return why and f"no unprivileged user namespaces: {why}"


def without_root() -> list[str]:
    """A prefix for a user without any capability: the stranger if we are root, else ourselves."""
    if root() is not None:
        return []
    return [
        "setpriv",
        f"--reuid={STRANGER}",
        f"--regid={STRANGER}",
        "--clear-groups",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--bounding-set=-all",
    ]


@functools.cache
def nft() -> str | None:
    """The program, with which a test looks into a pod, or does as its owner."""
    return _try("nft", "--version")


PROBES: dict[str, Callable[[], str | None]] = {
    "needs_netns": netns,
    "needs_named_netns": named_netns,
    "needs_root": root,
    "needs_userns": userns,
    "needs_nft": nft,
}


def require(need: str) -> None:
    """Skips the running test if the host lacks NEED, or fails it under PYZTUN_REQUIRE_ROOT=1."""
    why = PROBES[need]()
    if why is not None:
        unmet(f"{need}: {why}")


def unmet(why: str) -> NoReturn:
    """Skips the running test for this reason, or fails it under PYZTUN_REQUIRE_ROOT=1."""
    if os.environ.get("PYZTUN_REQUIRE_ROOT") == "1":
        pytest.fail(f"{why} (PYZTUN_REQUIRE_ROOT=1)", pytrace=False)
    pytest.skip(why)


def give_userns_a_run() -> None:
    """Mounts a private tmpfs on /run where a user namespace has none of its own.

    `unshare --user --map-root-user --net --mount` leaves the host's /run in place, which its root
    may not write. The mount namespace is our own there: the mount goes with its last process.
    """
    if not in_user_namespace() or os.environ.get("PYZTUN_USERNS") == "1":
        return
    if not os.access("/run", os.W_OK):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, b"mode=0755")
