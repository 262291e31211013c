"""asyncio servers and connections in another netns.

Names are resolved first, at home: an executor thread that runs getaddrinfo() must never have been
born in a pod. Then the sockets are made there by one native call, which needs no await: on the main
thread it takes about 60 microseconds. From then on they are ordinary sockets of the event loop.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from pyztun import addresses
from pyztun.dial import Dialer
from pyztun.netns import NetNs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypedDict

    from typing_extensions import Unpack

    from pyztun.types import Address, ListenOptions, Reference, Resolved

    class TlsOptions(TypedDict, total=False):
        """What asyncio wants to know of a TLS connection."""

        ssl_handshake_timeout: float | None
        ssl_shutdown_timeout: float | None

    class ServerOptions(ListenOptions, TlsOptions, total=False):
        """The keyword arguments that start_server() hands on."""

        ssl: Any


LIMIT = 2**16
"""Bytes that a StreamReader buffers, the default of asyncio."""

BACKLOG = 100
"""What asyncio asks listen(2) for by default."""

TLS = ("ssl", "ssl_handshake_timeout", "ssl_shutdown_timeout")
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 (what None means to asyncio.start_server)


class Server(asyncio.AbstractServer):
    """Several asyncio servers as one: what start_server() on a name with several addresses makes.

    The methods are those of asyncio.Server. Belongs to the event loop that made it.
    """

    def __init__(self, servers: Sequence[asyncio.Server]) -> None:
        self._servers = tuple(servers)

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets, as asyncio shows them; empty once closed."""
        return tuple(sock for server in self._servers for sock in server.sockets)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the server belongs to."""
        return self._servers[0].get_loop()

    def is_serving(self) -> bool:
        """Whether new connections are accepted."""
        return all(server.is_serving() for server in self._servers)

    async def start_serving(self) -> None:
        """Starts to accept; does nothing the second time."""
        for server in self._servers:
            await server.start_serving()

    async def serve_forever(self) -> None:
        """Accepts until it is cancelled, and closes then."""
        try:
            await asyncio.gather(*(server.serve_forever() for server in self._servers))
        finally:
            self.close()

    def close(self) -> None:
        """Closes the listeners; connections go on. Idempotent."""
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        """Waits until it is closed; from Python 3.12 on also for the last connection."""
        for server in self._servers:
            await server.wait_closed()

    def close_clients(self) -> None:
        """Closes what was accepted (Python 3.13)."""
        for server in self._servers:
            server.close_clients()  # type: ignore[attr-defined]

    def abort_clients(self) -> None:
        """Ends what was accepted, without flushing (Python 3.13)."""
        for server in self._servers:
            server.abort_clients()  # type: ignore[attr-defined]

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()


async def start_server(
    client_connected_cb: Callable[
        [asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None
    ],
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    netns: Reference,
    limit: int = LIMIT,
    start_serving: bool = True,
    **options: Unpack[ServerOptions],
) -> Server:
    """asyncio.start_server() in another netns.

    :param client_connected_cb: as for asyncio: called with reader and writer of each connection.
    :param host: one or several addresses or names; None or an empty text for all interfaces. Names
        are resolved before the netns is entered, and all their addresses are listened on.
    :param port: None or 0 lets the kernel choose, for each address another.
    :param netns: a NetNs, a path, a name, ``pid:N``, ``fd:N`` or an fd; borrowed.
    :param options: those of :meth:`NetNs.listen` (backlog 100), and ssl, ssl_handshake_timeout and
        (Python 3.11) ssl_shutdown_timeout of asyncio.
    :returns: one object for all addresses, to be closed by the caller. All or none are listened on.
    :raises MissingCapability, NetnsGone, AddressInUse, SyscallError, socket.gaierror:
    """
    tls = {name: options.pop(name) for name in TLS if name in options}  # type: ignore[misc]
    backlog = options.setdefault("backlog", BACKLOG)
    with NetNs.of(netns) as pod:
        found = await _resolve_all(host, port or 0)
        listeners = pod.listen(*(address for _, address in found), **options)  # type: ignore[misc]
    servers: list[asyncio.Server] = []
    try:
        for listener in listeners:
            # Without start_serving asyncio does not await here, so no server can be lost half-made.
            server = await asyncio.start_server(
                client_connected_cb,
                sock=listener,
                limit=limit,
                backlog=backlog,
                start_serving=False,
                **tls,
            )
            servers.append(server)
        whole = Server(servers)
        if start_serving:
            await whole.start_serving()
    except BaseException:
        for made in servers:
            made.close()
        for listener in listeners:
            listener.close()
        raise
    return whole


async def open_connection(
    host: str,
    port: int,
    *,
    netns: Reference,
    limit: int = LIMIT,
    local_addr: Address | None = None,
    mark: int = 0,
    ssl: Any = None,
    server_hostname: str | None = None,
    **options: Unpack[TlsOptions],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio.open_connection() out of another netns.

    :param host: an address or a name; a name is resolved before the netns is entered, and its
        addresses are tried in turn. Wrap the call in asyncio.wait_for() for a timeout.
    :param netns: a NetNs, a path, a name, ``pid:N``, ``fd:N`` or an fd; borrowed.
    :param local_addr: (IP literal, port) to connect from.
    :param mark: SO_MARK, set before the connection; 0 for none.
    :param ssl: an SSLContext or True, as for asyncio. The host is the name that a certificate is
        checked against, unless ``server_hostname`` says another.
    :param options: ssl_handshake_timeout and (Python 3.11) ssl_shutdown_timeout.
    :raises SyscallError: of the last address; also of the built-in class of its errno.
        MissingCapability, NetnsGone, socket.gaierror.
    """
    tls: dict[str, Any] = dict(options)
    if unknown := tls.keys() - set(TLS):
        raise TypeError(f"open_connection() has no argument {min(unknown)!r}")
    if server_hostname is not None and not ssl:
        raise ValueError("server_hostname is only meaningful with ssl")
    with NetNs.of(netns) as pod:
        dialer = Dialer(pod.socket, pod.shown, local_addr, mark)
        targets = dialer.targets(await _resolve(host, port))
        sock = await _connect_to_one(dialer, targets)
    if ssl:
        tls["ssl"] = ssl
        tls["server_hostname"] = host if server_hostname is None else server_hostname
    try:
        return await asyncio.open_connection(sock=sock, limit=limit, **tls)
    except BaseException:
        sock.close()
        raise


async def _connect_to_one(dialer: Dialer, targets: list[Resolved]) -> socket.socket:
    for target in targets[:-1]:
        try:
            return await _connect(dialer, target)
        except OSError:
            continue
    return await _connect(dialer, targets[-1])


async def _connect(dialer: Dialer, target: Resolved) -> socket.socket:
    with dialer.attempt(target) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target[1])
        return sock


async def _resolve_all(host: str | Sequence[str] | None, port: int) -> list[Resolved]:
    """Every address of every host, once."""
    if host is None or host == "":
        hosts: Sequence[str] = ANY_ADDRESS
    else:
        hosts = (host,) if isinstance(host, str) else host
    found: dict[Resolved, None] = {}
    for each in hosts:
        found.update(dict.fromkeys(await _resolve(each, port)))
    return list(found)


async def _resolve(host: str, port: int) -> list[Resolved]:
    known = addresses.literal((host, port))
    if known is not None:
        return [known]
    loop = asyncio.get_running_loop()
    return addresses.in_order(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
