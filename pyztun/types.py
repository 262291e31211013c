"""The names of what arguments may be, for annotations of one's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypedDict, Union

if TYPE_CHECKING:
    from pyztun.netns import NetNs


class HasFileno(Protocol):
    """A socket, a file, an OwnedFd, a NetNs."""

    def fileno(self) -> int:
        """The number of its descriptor."""


Descriptor: TypeAlias = int | HasFileno
"""The number of an fd, or an object that has one."""

Reference: TypeAlias = Union["NetNs", str, "os.PathLike[str]", int]
"""What names a netns: a NetNs, a path, a name, ``pid:N``, ``fd:N``, or the number of an fd."""

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""(host, port), or the four fields of an IPv6 socket address."""

Resolved: TypeAlias = tuple[int, Address]
"""An address family and an address whose host is an IP literal."""


class ListenOptions(TypedDict, total=False):
    """The keyword arguments of NetNs.listen()."""

    type: int
    backlog: int
    reuse_address: bool | None
    reuse_port: bool
    transparent: bool
    freebind: bool
    v6only: bool
    mark: int
