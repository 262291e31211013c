"""pyztun: sockets in another network namespace, without being there; and passing its descriptor.

The names below load on first use: every command imports this package, and the one-shot sender must
start nearly as fast as bare python.
"""

from __future__ import annotations

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
    from pyztun.sockets import listen, socket_netns

__version__ = "0.1.0"

_HOME = {
    "AddressInUse": "errors",
    "Channel": "channel",
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
    "Server": "aio",
    "SyscallError": "errors",
    "UnsupportedFamily": "errors",
    "listen": "sockets",
    "open_connection": "aio",
    "recv_fds": "channel",
    "send_fds": "channel",
    "socket_netns": "sockets",
    "start_server": "aio",
}

__all__ = [
    "AddressInUse",
    "Channel",
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
    "Server",
    "SyscallError",
    "UnsupportedFamily",
    "__version__",
    "listen",
    "open_connection",
    "recv_fds",
    "send_fds",
    "socket_netns",
    "start_server",
]


def __getattr__(name: str) -> object:
    """Loads a public name from the module that defines it (PEP 562)."""
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'pyztun' has no attribute {name!r}")
    # importlib costs more than the module that is asked for; __import__ is already there.
    value = getattr(__import__(f"pyztun.{module}", fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
