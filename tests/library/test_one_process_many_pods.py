"""One process, one event loop, the same port in several pods, and clients of every kind at once."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvicorn

import pyztun
from pyztun import NetNs
from support.pods import Pod

PORT = 8080
VISITS = 20
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def application(name: str) -> Callable[..., Any]:
    """An ASGI application that says which pod it serves."""

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    return answer


class Servers:
    """A uvicorn in each pod, all in one loop of one thread that is not the main one."""

    def __init__(self, pods: list[Pod]) -> None:
        self._pods = pods
        self._servers = [
            uvicorn.Server(
                uvicorn.Config(application(pod.name), lifespan="off", log_level="warning")
            )
            for pod in pods
        ]

    async def _serve(self, listeners: list[socket.socket]) -> None:
        pairs = zip(self._servers, listeners, strict=True)
        await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in pairs))

    def __enter__(self) -> None:
        """Who connects before a server runs waits in the backlog."""
        listeners = [pyztun.listen(("0.0.0.0", PORT), netns=pod.name) for pod in self._pods]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listeners)))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.should_exit = True
        self._thread.join()


def ask_in_a_thread(pod: Pod) -> tuple[str, str]:
    """The answer to a request from a thread of an executor, and the name of the pod asked."""
    with NetNs.open(pod.name) as netns, netns.connect(("127.0.0.1", PORT), timeout=30) as client:
        client.sendall(REQUEST)
        with client.makefile("rb") as answer:
            return answer.read().decode().rpartition("\r\n")[2], pod.name


async def ask_in_a_loop(pod: Pod) -> tuple[str, str]:
    reader, writer = await pyztun.open_connection("127.0.0.1", PORT, netns=pod.path)
    writer.write(REQUEST)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode().rpartition("\r\n")[2], pod.name


def echo_over_udp(pod: Pod) -> tuple[str, str]:
    with NetNs.open(pod.name) as netns:
        (server,) = netns.listen(("127.0.0.1", 0), type=socket.SOCK_DGRAM)
        with server, netns.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(pod.name.encode(), server.getsockname())
            return server.recv(100).decode(), pod.name


@pytest.mark.needs_named_netns
def test_every_answer_comes_from_the_right_pod(make_pod: Callable[[], Pod]) -> None:
    pods = [make_pod() for _ in range(3)]
    home = os.stat("/proc/self/ns/net").st_ino

    async def ask_all() -> list[tuple[str, str]]:
        return await asyncio.gather(*(ask_in_a_loop(pod) for pod in pods * VISITS))

    with Servers(pods), ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(ask_in_a_thread, pod) for pod in pods * VISITS]
        datagrams = [pool.submit(echo_over_udp, pod) for pod in pods * VISITS]
        answers = asyncio.run(ask_all())
        answers += [each.result() for each in (*threads, *datagrams)]
    assert len(answers) == 3 * 3 * VISITS
    assert [(said, asked) for said, asked in answers if said != asked] == []
    assert os.stat("/proc/self/ns/net").st_ino == home
