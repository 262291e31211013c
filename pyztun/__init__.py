"""pyztun: pass a netns file descriptor to another process, get sockets in a pod, and stay at home.

The names below load on first use: every command imports this package, and the one-shot sender must
start nearly as fast as bare python.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.channel import Channel
    from pyztun.errors import (
        AddressInUse,
        MissingCapability,
        NetnsError,
        NetnsGone,
        NotANetns,
        PeerClosed,
        ProtocolError,
        PyztunError,
        SyscallError,
    )
    from pyztun.fds import OwnedFd
    from pyztun.netns import NetNs

__version__ = "0.1.0"

_HOME = {
    "Channel": "channel",
    "AddressInUse": "errors",
    "MissingCapability": "errors",
    "NetnsError": "errors",
    "NetnsGone": "errors",
    "NotANetns": "errors",
    "PeerClosed": "errors",
    "ProtocolError": "errors",
    "PyztunError": "errors",
    "SyscallError": "errors",
    "OwnedFd": "fds",
    "NetNs": "netns",
}

__all__ = [
    "AddressInUse",
    "Channel",
    "MissingCapability",
    "NetNs",
    "NetnsError",
    "NetnsGone",
    "NotANetns",
    "OwnedFd",
    "PeerClosed",
    "ProtocolError",
    "PyztunError",
    "SyscallError",
    "__version__",
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
