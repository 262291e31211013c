"""pyztun: sockets in another network namespace, without being there; and passing its descriptor.

Begin with help(pyztun.NetNs) and docs/library.md.

The names below load on first use: every command imports this package, and the one-shot sender must
start nearly as fast as bare python.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.aio import Server, open_connection, start_server
    from pyztun.channel import Channel, recv_fds, send_fds
    from pyztun.errors import (
        AddressInUse,
        MissingCapability,
        NetnsClosed,
        NetnsError,
        NetnsGone,
        NotANetns,
        PeerClosed,
        ProtocolError,
        PyztunError,
        SyscallError,
        UnsupportedFamily,
    )
    from pyztun.fds import OwnedFd
    from pyztun.netns import NetNs
    from pyztun.sockets import connect, listen, socket_netns
    from pyztun.types import Address, Descriptor, Reference

__version__ = "0.1.0"

_HOME = {
    "Address": "types",
    "AddressInUse": "errors",
    "Channel": "channel",
    "Descriptor": "types",
    "MissingCapability": "errors",
    "NetNs": "netns",
    "NetnsClosed": "errors",
    "NetnsError": "errors",
    "NetnsGone": "errors",
    "NotANetns": "errors",
    "OwnedFd": "fds",
    "PeerClosed": "errors",
    "ProtocolError": "errors",
    "PyztunError": "errors",
    "Reference": "types",
    "Server": "aio",
    "SyscallError": "errors",
    "UnsupportedFamily": "errors",
    "connect": "sockets",
    "listen": "sockets",
    "open_connection": "aio",
    "recv_fds": "channel",
    "send_fds": "channel",
    "socket_netns": "sockets",
    "start_server": "aio",
}

__all__ = [
    "Address",
    "AddressInUse",
    "Channel",
    "Descriptor",
    "MissingCapability",
    "NetNs",
    "NetnsClosed",
    "NetnsError",
    "NetnsGone",
    "NotANetns",
    "OwnedFd",
    "PeerClosed",
    "ProtocolError",
    "PyztunError",
    "Reference",
    "Server",
    "SyscallError",
    "UnsupportedFamily",
    "__version__",
    "connect",
    "listen",
    "open_connection",
    "recv_fds",
    "send_fds",
    "socket_netns",
    "start_server",
]


def _load(package: str, home: dict[str, str], name: str) -> object:
    """A public name of a package, from the module that defines it; loaded once (PEP 562)."""
    module = home.get(name)
    if module is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    # importlib costs more than the module that is asked for; __import__ is already there.
    value: object = getattr(__import__(f"{package}.{module}", fromlist=[name]), name)
    setattr(sys.modules[package], name, value)
    return value


if not TYPE_CHECKING:  # a checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        return _load(__name__, _HOME, name)


def __dir__() -> list[str]:
    return __all__
