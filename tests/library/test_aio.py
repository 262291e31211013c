"""start_server() and open_connection() in another netns, beside what asyncio does itself."""

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme

import pyztun
from pyztun import AddressInUse, NetNs, NetnsGone, SyscallError, socket_netns
from pyztun.testing import PodPair
from support import pods

pytestmark = pytest.mark.needs_netns

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run() with everything that asyncio calls a mistake as an error."""
    asyncio.run(asyncio.wait_for(main, 30), debug=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def ask(streams: Streams, line: bytes = b"hello\n") -> bytes:
    reader, writer = streams
    writer.write(line)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def port_of(server: pyztun.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def test_a_server_and_a_connection_in_a_pod(netns: NetNs) -> None:
    async def main() -> None:
        server = await pyztun.start_server(echo, "127.0.0.1", 0, netns=netns)
        assert server.is_serving()
        with socket_netns(server.sockets[0].fileno()) as where:
            assert where.is_same(netns)
        streams = await pyztun.open_connection("127.0.0.1", port_of(server), netns=netns)
        assert await ask(streams) == b"hello\n"
        server.close()
        await server.wait_closed()
        assert server.sockets == ()
        assert not server.is_serving()

    run(main())


def test_between_two_pods(pod_pair: PodPair) -> None:
    left, right = pod_pair

    async def main() -> None:
        async with await pyztun.start_server(echo, list(right.addresses), 7, netns=right.netns):
            for source, target in zip(left.addresses, right.addresses, strict=True):
                streams = await pyztun.open_connection(
                    target, 7, netns=left.netns, local_addr=(source, 0), mark=5
                )
                sock = streams[1].get_extra_info("socket")
                assert sock.getsockname()[0] == source
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 5
                assert await ask(streams) == b"hello\n"

    run(main())


def test_all_addresses_of_a_name_or_none(netns: NetNs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up by a thread of the executor, which is at home."""
    home = os.stat("/proc/self/ns/net").st_ino
    threads = []
    real = socket.getaddrinfo

    def two_addresses(host: str, port: int, *args: int, **options: int) -> object:
        threads.append(os.stat("/proc/thread-self/ns/net").st_ino)
        assert host == "pod.example"
        found = real("127.0.0.1", port, *args, **options)
        return [*found, *real("::1", port, *args, **options), *found]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)

    async def main() -> None:
        async with await pyztun.start_server(echo, "pod.example", 7, netns=netns) as server:
            names = [sock.getsockname()[:2] for sock in server.sockets]
            assert names == [("127.0.0.1", 7), ("::1", 7)]
            streams = await pyztun.open_connection("pod.example", 7, netns=netns)
            assert await ask(streams) == b"hello\n"
            with pytest.raises(AddressInUse, match=r"127\.0\.0\.1:7 in netns"):
                await pyztun.start_server(echo, "pod.example", 7, netns=netns)
        (taken,) = netns.listen(("::1", 8))
        with taken, pytest.raises(AddressInUse, match=r"\[::1\]:8 in netns"):
            await pyztun.start_server(echo, "pod.example", 8, netns=netns)
        netns.listen(("127.0.0.1", 8))[0].close()  # which the failure has left free

    run(main())
    assert set(threads) == {home}


def test_the_next_address_is_tried(netns: NetNs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two_addresses(_: str, port: int, *args: int, **options: int) -> object:
        return [*real("127.0.0.2", port, *args, **options), *real("127.0.0.1", port)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)

    async def main() -> None:
        async with await pyztun.start_server(echo, "127.0.0.1", 0, netns=netns) as server:
            streams = await pyztun.open_connection("x.example", port_of(server), netns=netns)
            assert await ask(streams) == b"hello\n"

    run(main())


@pytest.mark.parametrize("host", [None, ""])
def test_no_host_means_all_interfaces(pod_pair: PodPair, host: str | None) -> None:
    left, right = pod_pair

    async def main() -> None:
        async with await pyztun.start_server(echo, host, 7, netns=right.netns) as server:
            assert len(server.sockets) == 2
            for address in right.addresses:
                streams = await pyztun.open_connection(address, 7, netns=left.netns)
                assert await ask(streams) == b"hello\n"

    run(main())


def test_it_can_start_later_and_serve_for_ever(netns: NetNs) -> None:
    async def main() -> None:
        server = await pyztun.start_server(
            echo, ["127.0.0.1", "::1"], 7, netns=netns, start_serving=False
        )
        assert not server.is_serving()
        serving = asyncio.create_task(server.serve_forever())
        while not server.is_serving():
            await asyncio.sleep(0)
        assert await ask(await pyztun.open_connection("::1", 7, netns=netns)) == b"hello\n"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        await server.wait_closed()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio.Server has it since 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_clients_can_be_closed(netns: NetNs, method: str) -> None:
    async def main() -> None:
        met = asyncio.Event()

        async def meet(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            met.set()
            with contextlib.suppress(ConnectionError):
                await reader.read()

        server = await pyztun.start_server(meet, "127.0.0.1", 0, netns=netns)
        reader, writer = await pyztun.open_connection("127.0.0.1", port_of(server), netns=netns)
        writer.write(b"x")
        await met.wait()
        server.close()
        getattr(server, method)()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await server.wait_closed()
        writer.close()

    run(main())


FAILURES: list[tuple[str, type[OSError], str]] = [
    ("127.0.0.1", ConnectionRefusedError, "connect 127.0.0.1:9 in netns (unnamed, inode "),
    ("198.51.100.1", OSError, "ENETUNREACH (the netns has no route there)"),
    ("name.invalid", socket.gaierror, ""),
]


@pytest.mark.parametrize(("host", "kind", "text"), FAILURES)
def test_why_there_is_no_connection(
    netns: NetNs, host: str, kind: type[OSError], text: str
) -> None:
    async def main() -> None:
        with pytest.raises(kind) as caught:
            await pyztun.open_connection(host, 9, netns=netns)
        assert text in str(caught.value)

    run(main())


def test_mistakes_are_told_before_anything_is_connected(netns: NetNs) -> None:
    async def main() -> None:
        for wrong in ({"family": socket.AF_INET}, {"bogus": 1}, {"sock": None}):
            with pytest.raises(TypeError, match=next(iter(wrong))):
                await pyztun.open_connection("127.0.0.1", 9, netns=netns, **wrong)
        with pytest.raises(ValueError, match="only meaningful with ssl"):
            await pyztun.open_connection("127.0.0.1", 9, netns=netns, server_hostname="x")
        with pytest.raises(ConnectionRefusedError):
            await pyztun.open_connection("127.0.0.1", 9, netns=netns, ssl=False)
        with pytest.raises(TypeError, match="bogus"):
            await pyztun.start_server(echo, "127.0.0.1", 9, netns=netns, bogus=1)  # type: ignore[call-arg]

    run(main())


def test_a_netns_that_does_not_exist() -> None:
    async def main() -> None:
        with pytest.raises(NetnsGone):
            await pyztun.start_server(echo, "127.0.0.1", 0, netns="no-such-netns")
        with pytest.raises(NetnsGone):
            await pyztun.open_connection("127.0.0.1", 1, netns="no-such-netns")

    run(main())


def test_the_reference_may_go_while_it_is_used(pod_pair: PodPair) -> None:
    """The NetNs is borrowed: its owner closes it while a connection is being made."""
    left = NetNs.of(pod_pair.left.netns)

    async def main() -> None:
        attempt = asyncio.create_task(pyztun.open_connection("localhost", 9, netns=left))
        await asyncio.sleep(0)
        left.close()
        with pytest.raises(SyscallError, match="ECONNREFUSED"):
            await attempt

    run(main())


def test_a_cancelled_connection_leaves_nothing(pod_pair: PodPair) -> None:
    """leak_check, which every test has, would tell."""

    async def main() -> None:
        connecting = pyztun.open_connection("192.0.2.99", 80, netns=pod_pair.left.netns)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(connecting, 0.2)

    run(main())


def test_a_cancelled_start_leaves_nothing(netns: NetNs) -> None:
    async def main() -> None:
        for turns in range(6):
            start = asyncio.create_task(pyztun.start_server(echo, "127.0.0.1", 7, netns=netns))
            for _ in range(turns):
                await asyncio.sleep(0)
            start.cancel()
            try:
                server = await start
            except asyncio.CancelledError:
                continue
            server.close()
            await server.wait_closed()
        netns.listen(("127.0.0.1", 7))[0].close()

    run(main())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """PEM files: the certificate of an authority, and key and chain of its server `localhost`."""
    authority = trustme.CA()
    root, server = tmp_path / "root.pem", tmp_path / "server.pem"
    authority.cert_pem.write_to_path(str(root))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(server))
    return root, server


def test_tls(netns: NetNs, certificate: tuple[Path, Path]) -> None:
    root, chain = certificate
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(chain)
    asking = ssl.create_default_context(cafile=root)

    async def main() -> None:
        server = await pyztun.start_server(echo, "localhost", 0, netns=netns, ssl=serving)
        streams = await pyztun.open_connection(
            "localhost", port_of(server), netns=netns, ssl=asking
        )
        assert await ask(streams) == b"hello\n"
        with pytest.raises(ssl.SSLCertVerificationError):
            await pyztun.open_connection(
                "localhost", port_of(server), netns=netns, ssl=asking, server_hostname="other"
            )
        server.close()
        await server.wait_closed()

    run(main())


def test_from_a_loop_in_another_thread(netns: NetNs) -> None:
    def work() -> None:
        async def main() -> None:
            async with await pyztun.start_server(echo, "127.0.0.1", 7, netns=netns):
                assert await ask(await pyztun.open_connection("127.0.0.1", 7, netns=netns))

        run(main())

    pods.in_netns("/proc/self/ns/net", work)


def test_udp_with_the_loops_own_endpoint(netns: NetNs) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data, addr)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        (bound,) = netns.listen(("127.0.0.1", 0), type=socket.SOCK_DGRAM)
        bound.setblocking(False)
        transport, _ = await loop.create_datagram_endpoint(Echo, sock=bound)
        client = netns.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        client.connect(bound.getsockname())
        client.send(b"hello")
        assert await loop.sock_recv(client, 100) == b"hello"
        client.close()
        transport.close()

    run(main())


def test_many_at_once(make_pod: Callable[[], pods.Pod]) -> None:
    """Servers in three pods, fifty connections each, in one loop; each meets its own pod's."""
    made = [make_pod() for _ in range(3)]

    async def main() -> None:
        servers = []
        for pod in made:

            async def tell(
                _: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = pod.name
            ) -> None:
                writer.write(name.encode())
                writer.close()

            servers.append(await pyztun.start_server(tell, "127.0.0.1", 7, netns=pod.name))

        async def visit(pod: pods.Pod) -> bytes:
            reader, writer = await pyztun.open_connection("127.0.0.1", 7, netns=pod.path)
            said = await reader.read()
            writer.close()
            await writer.wait_closed()
            return said

        visits = [pod for pod in made for _ in range(50)]
        answers = await asyncio.gather(*map(visit, visits))
        assert answers == [pod.name.encode() for pod in visits]
        for server in servers:
            server.close()
            await server.wait_closed()

    run(main())
