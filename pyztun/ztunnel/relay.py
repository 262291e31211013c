"""The native relay: threads in C that carry the connections of all pods.

What it does is in ``csrc/relay*.c``, its contract in ``csrc/relay.h``. Python adds pods, takes them
away, and reads what became of their connections; it never sees a byte of them.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyztun import native

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyztun.native import CData

ffi, lib = native.load_relay()

PORTS: Mapping[int, int] = {
    15001: lib.PZ_DOOR_OUTBOUND,
    15006: lib.PZ_DOOR_INBOUND,
    15008: lib.PZ_DOOR_HBONE,
    15080: lib.PZ_DOOR_SOCKS5,
}
"""What a port is for, as in Istio's ztunnel."""
NO_MARK: int = lib.PZ_END_NO_MARK
MAX_BATCHES: int = lib.PZ_RELAY_EVENTS // lib.PZ_RELAY_BATCH
"""Of events, that wait at most."""
STARTS = {errno.EPERM: "setns(home)", errno.EAGAIN: "pthread_create", errno.ENOMEM: "malloc"}
"""What it is that fails when the relay starts, as far as the errno tells."""
COUNTERS = [name for name, _ in ffi.typeof("struct pz_relay_counters").fields if name != "bytes"]


@dataclass(frozen=True)
class RelayOptions:
    """How the relay works; see struct pz_relay_settings.

    :ivar threads: of the relay.
    :ivar connect_timeout: seconds for a connect to be answered.
    :ivar idle_timeout: seconds without a byte either way; 0: for ever.
    :ivar half_close_timeout: the same once one side said FIN; 0: for ever.
    """

    threads: int
    connect_timeout: float = 10.0
    idle_timeout: float = 0.0
    half_close_timeout: float = 3600.0


class Door:
    """A pod in the relay. It borrows the netns and the listeners until drop()."""

    __slots__ = ("handle",)

    def __init__(self, handle: CData) -> None:
        self.handle = handle


class Relay:
    """See above. next() belongs to one thread, all else may be called from any.

    :param max_flows: connections at a time; more wait in the kernel's queue, and those of one pod
        as soon as it holds four times what is free.
    :param max_pipes: of each thread, for streams that are bulk.
    :param mark: SO_MARK of outgoing connections.
    :param log: None for no access log, else ``human`` or ``json``.
    :raises SyscallError: no thread, no descriptor; MissingCapability: it needs CAP_SYS_ADMIN.
    """

    def __init__(
        self, options: RelayOptions, *, max_flows: int, max_pipes: int, mark: int, log: str | None
    ) -> None:
        error = ffi.new("int *")
        settings = ffi.new("struct pz_relay_settings *")
        settings.threads, settings.mark = options.threads, mark
        settings.max_flows, settings.max_pipes = max_flows, max_pipes
        settings.connect_ms = _ms(options.connect_timeout)
        settings.idle_ms = _ms(options.idle_timeout)
        settings.half_close_ms = _ms(options.half_close_timeout)
        settings.log, settings.json = log is not None, log == "json"
        handle = lib.pz_relay_new(settings, error)
        native.check(error[0], STARTS.get(-error[0], "pz_relay_new"), "the relay")
        self._handle = ffi.gc(handle, lib.pz_relay_free)
        self._batch = ffi.new("struct pz_batch *")

    def take(
        self, netns_fd: int, listeners: Sequence[int], ports: Sequence[int], pod: int, names: Names
    ) -> Door:
        """Relays the connections of these listeners from now on.

        :param netns_fd: of the pod; it and the listeners are borrowed until drop().
        :param ports: of the listeners; each is one of PORTS.
        :param pod: what its events are known by.
        :raises SyscallError: it could not be added; nothing is borrowed.
        """
        doors = ffi.new("struct pz_door[]", len(listeners))
        for door, listener, port in zip(doors, listeners, ports, strict=True):
            door.listener, door.port, door.kind = listener, port, PORTS[port]
        error = ffi.new("int *")
        handle = lib.pz_relay_take(
            self._handle, netns_fd, doors, len(listeners), pod, *_sized(names), error
        )
        native.check(error[0], "epoll_ctl", "listener")
        return Door(handle)

    def rename(self, door: Door, names: Names) -> None:
        """Other names in the log, for connections from now on. SyscallError."""
        rc = lib.pz_relay_rename(self._handle, door.handle, *_sized(names))
        native.check(rc, "malloc", "names")

    def mend(self, door: Door, index: int, listener: int) -> None:
        """Another listener in place of one that was destroyed; connections go on.

        :param index: of the listener in those of take().
        :param listener: borrowed until drop(); the old one is not touched any more.
        :raises SyscallError: neither is served.
        """
        rc = lib.pz_relay_mend(self._handle, door.handle, index, listener)
        native.check(rc, "epoll_ctl", "listener")

    def drop(self, door: Door) -> None:
        """Resets its connections; nothing of it is touched any more. Blocks for microseconds."""
        lib.pz_relay_drop(self._handle, door.handle)

    def close_doors(self) -> None:
        """Accepts what is queued on all listeners, and then none: they may be closed."""
        lib.pz_relay_close_doors(self._handle)

    def finish(self, timeout: float) -> int:
        """Waits for the open connections, resets what is left; returns how many those were."""
        return lib.pz_relay_finish(self._handle, _ms(timeout))

    def next(self, timeout: float | None) -> int:
        """Blocks until connections have ended; returns how many, 0: wake(), the time is over, or
        counters have grown of what hinders it: paused, held_back, lost_listeners.

        events and log() are about these, until the next call.
        """
        return lib.pz_relay_next(self._handle, self._batch, -1 if timeout is None else _ms(timeout))

    @property
    def events(self) -> CData:
        """The struct pz_flow_event of the last batch, to be indexed below what next() returned."""
        events: CData = self._batch.events
        return events

    def log(self) -> bytes:
        """The access log of the last batch: whole lines."""
        size = self._batch.log_size
        return bytes(ffi.buffer(self._batch.log, size)[:]) if size else b""

    def wake(self) -> None:
        """Ends the present or the next next()."""
        lib.pz_relay_wake(self._handle)

    def counters(self) -> dict[str, int]:
        """struct pz_relay_counters, with the bytes as bytes_source and bytes_destination."""
        out = ffi.new("struct pz_relay_counters *")
        lib.pz_relay_counters(self._handle, out)
        now = {name: int(getattr(out, name)) for name in COUNTERS}
        return {**now, "bytes_source": int(out.bytes[0]), "bytes_destination": int(out.bytes[1])}

    def close(self) -> None:
        """Resets every connection and ends the threads."""
        ffi.release(self._handle)


Names = tuple[str, str]
"""Name and namespace of a workload."""


def _ms(seconds: float) -> int:
    return min(int(seconds * 1000), 0x7FFFFFFF)


def _sized(names: Names) -> tuple[bytes, int, bytes, int]:
    name, space = (each.encode() for each in names)
    return name, len(name), space, len(space)
