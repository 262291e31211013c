"""The control API over HTTP: routes, answers, errors, and what becomes of a request in work."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_agent import LIMIT, FakeAgent, UnixConnection, received

from pyztun.cni.agent import requests, views
from pyztun.cni.agent.connection import Bounds
from pyztun.cni.agent.requests import Refusal
from pyztun.cni.agent.workload import PENDING, Workload

POST = b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def agent(directory: Path) -> Iterator[FakeAgent]:
    with FakeAgent(directory, Bounds(drain=0.5, flush=0.2)) as made:
        yield made


def test_add_show_list_delete(agent: FakeAgent) -> None:
    added = agent.add("/run/netns/a", uid="u", name="web", labels={"k": "v"}, timeout=3)
    assert added.status == 200
    assert (added.body["uid"], added.body["name"], added.body["state"]) == ("u", "web", "ready")
    assert (added.body["labels"], added.body["ztunnels"]) == ({"k": "v"}, [1])
    assert added.body.pop("connections_reset") is False
    assert agent.ask("GET", "/v1/workloads/u").body == added.body
    assert agent.ask("GET", "/v1/workloads").body == {"workloads": [added.body]}
    deleted = agent.ask("DELETE", "/v1/workloads/u?timeout=0.5")
    assert deleted.status == 200
    assert deleted.body == {"workload": {**added.body, "ztunnels": []}, "unconfirmed": []}
    assert agent.ask("DELETE", "/v1/workloads/u").error == (404, "no-such-workload")
    assert [timeout for _, timeout in agent.core.asked] == [3, 0.5, views.DEFAULT_TIMEOUT]


def test_the_caller_is_known_by_his_socket(agent: FakeAgent) -> None:
    agent.add()
    assert agent.core.asked[0][0].peer_pid == os.getpid()


def test_who_has_not_confirmed_a_delete_is_named(agent: FakeAgent) -> None:
    agent.core.unconfirmed = (3, 5)
    agent.add(uid="u")
    assert agent.ask("DELETE", "/v1/workloads/u").body["unconfirmed"] == [3, 5]


KEYS = [
    ("/run/netns/a", "%2Frun%2Fnetns%2Fa"),
    ("/run/netns/a", "%2frun%2fnetns%2fa"),
    ("/run/netns/a", "/run/netns/a"),
    ("/run/netns/a b", "%2Frun%2Fnetns%2Fa%20b"),
    ("/run/100%", "%2Frun%2F100%25"),
    ("/run/%2F", "%2Frun%2F%252F"),
    ("/run/a?b#c", "%2Frun%2Fa%3Fb%23c"),
    ("/run/ä", "%2Frun%2F%C3%A4"),
    ("/run/\udcff", "%2Frun%2F%FF"),
    ("/run/../x", "%2Frun%2F%2E%2E%2Fx"),
    ("pid:7", "pid:7"),
    ("/" + "\u20ac" * 1365, "%2F" + "%E2%82%AC" * 1365),
]


@pytest.mark.parametrize(("netns", "key"), KEYS, ids=lambda text: ascii(text[:20]))
def test_a_key_is_any_path(agent: FakeAgent, netns: str, key: str) -> None:
    assert agent.add(netns).status == 200
    assert agent.ask("GET", f"/v1/workloads/{key}").body["netns"] == netns
    assert agent.ask("DELETE", f"/v1/workloads/{key}?timeout=1").status == 200
    assert agent.core.asked[-1][0].netns == netns


def test_a_long_list_is_whole_and_in_order(agent: FakeAgent) -> None:
    for number in range(1000):
        assert agent.add(f"/run/netns/{number}", uid=str(number)).status == 200
    began = time.monotonic()
    listed = agent.ask("GET", "/v1/workloads").body["workloads"]
    assert time.monotonic() - began < LIMIT / 4  # make bench has the budget of 50 ms
    assert [each["uid"] for each in listed] == [str(number) for number in range(1000)]


def test_status(agent: FakeAgent) -> None:
    shown = agent.ask("GET", "/v1/status").body
    assert shown["started"] == "1970-01-01T00:00:00Z"
    assert shown["descriptors"] == {"held": 3, "limit": 100}


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/", (404, "no-such-path")),
        ("GET", "/v1", (404, "no-such-path")),
        ("GET", "/v1/", (404, "no-such-path")),
        ("GET", "/v1/workloads/", (404, "no-such-path")),
        ("GET", "/v1/workloads/{key}", (404, "no-such-workload")),
        ("GET", "/v1/status/x", (404, "no-such-path")),
        ("GET", "/x/v1/workloads/u", (404, "no-such-path")),
        ("POST", "/v2/workloads", (404, "no-such-path")),
        ("GET", "//v1/status", (404, "no-such-path")),
        ("PUT", "/v1/workloads", (405, "method-not-allowed")),
        ("TRACE", "/v1/status", (405, "method-not-allowed")),
        ("OPTIONS", "/v1/workloads/u", (405, "method-not-allowed")),
        ("DELETE", "/v1/workloads", (405, "method-not-allowed")),
        ("POST", "/v1/status", (405, "method-not-allowed")),
        ("GET", "/v1/status?x=1", (400, "bad-request")),
        ("GET", "/v1/workloads?timeout=1", (400, "bad-request")),
        ("DELETE", "/v1/workloads/u?timeout=x", (400, "bad-request")),
        ("DELETE", "/v1/workloads/u?timeout=1&timeout=1", (400, "bad-request")),
        ("GET", "/v1/workloads/u", (404, "no-such-workload")),
    ],
)
def test_what_there_is_not(
    agent: FakeAgent, method: str, path: str, error: tuple[int, str]
) -> None:
    assert agent.ask(method, path).error == error


def test_405_says_what_is_allowed(agent: FakeAgent) -> None:
    assert agent.ask("PUT", "/v1/workloads").headers["Allow"] == "GET, POST"
    assert agent.ask("PATCH", "/v1/workloads/u").headers["Allow"] == "GET, DELETE"


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n\r\n\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status HTTP/9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_what_is_no_http_is_answered_in_json(agent: FakeAgent, raw: bytes) -> None:
    reply = agent.raw(raw)
    assert reply.error == (400, "bad-request")
    assert agent.ask("GET", "/v1/status").status == 200


def test_a_bad_chunk_is_answered_in_json(agent: FakeAgent) -> None:
    head = b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    # aiohttp before 3.11 tells nobody, so that the deadline has to.
    errors = ((400, "bad-request"), (408, "request-timeout"))
    assert agent.raw(head, b"zz\r\n{}\r\n").error in errors


def test_half_closing_does_not_cost_the_answer(agent: FakeAgent) -> None:
    assert agent.raw(b"GET /v1/workloads HTTP/1.0\r\n\r\n").body == {"workloads": []}


def test_the_whole_url_is_a_path_too(agent: FakeAgent) -> None:
    head = b"GET http://localhost/v1/workloads HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert agent.raw(head).body == {"workloads": []}


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"GET /v1/workloads", 200), (b"CONNECT a:1", 404), (b"CONNECT /v1/workloads", 405)],
)
def test_an_upgrade_is_not_taken(agent: FakeAgent, line: bytes, status: int) -> None:
    fields = b"Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with agent.connected() as sock:
        sock.sendall(line + b" HTTP/1.1\r\n" + fields)
        assert received(sock).status == status
    assert agent.ask("GET", "/v1/workloads").status == 200


def test_expect_100_continue(agent: FakeAgent) -> None:
    head = (POST % 14)[:-2] + b"Expect: 100-continue\r\n\r\n"
    with agent.connected() as sock:
        sock.sendall(head)
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b'{"netns":"/a"}')
        assert received(sock).status == 200


def test_many_requests_on_one_connection(agent: FakeAgent) -> None:
    connection = UnixConnection(agent.path)
    for _ in range(200):
        connection.request("GET", "/v1/workloads")
        assert json.loads(connection.getresponse().read()) == {"workloads": []}
    connection.close()


def test_pipelined_requests_are_answered_in_order(agent: FakeAgent) -> None:
    body = b'{"netns":"/a","uid":"%d"}'
    with agent.connected() as sock:
        for number in range(50):
            text = body % number
            sock.sendall(POST % len(text))
            sock.sendall(text)
        answers = b""
        while answers.count(b"\r\n\r\n") < 50 or not answers.endswith(b"}\n"):
            chunk = sock.recv(65536)
            assert chunk
            answers += chunk
    uids = [json.loads(line)["uid"] for line in answers.splitlines() if line.startswith(b"{")]
    assert uids == [str(number) for number in range(50)]


def test_many_adds_at_once(agent: FakeAgent) -> None:
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda n: agent.add(f"/run/netns/{n}", uid=str(n)), range(300)))
    assert [reply.body["uid"] for reply in replies] == [str(number) for number in range(300)]
    assert len(agent.core.workloads) == 300


HOSTILE = ["\x1b]0;x\x07", "a\nb", "a\r\nX: y", "\u202e", "\x00", "\ud800", "a" * 5000, ""]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("field", ["uid", "name", "namespace", "service_account", "netns"])
def test_hostile_texts_are_refused_or_come_back_as_they_are(
    agent: FakeAgent, field: str, text: str
) -> None:
    reply = agent.ask("POST", "/v1/workloads", {"netns": "/a", field: text})
    assert reply.status in (200, 400)
    if reply.status == 200:
        assert reply.body[field] == text
    else:
        assert reply.body["error"] == "bad-request"
        assert reply.body["reason"].isprintable()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [code for code in views.STATUSES if code in vars(requests).values()]
)
def test_every_refusal_has_its_status_and_its_workload(agent: FakeAgent, code: str) -> None:
    async def refuse(workload: Workload) -> None:
        workload.set_state(PENDING, "why")
        raise Refusal(code, "why\nnot", workload)

    agent.core.before_ack = refuse
    reply = agent.add(uid="u")
    assert reply.error == (views.STATUSES[code], code)
    assert reply.body["reason"] == "why not"
    assert (reply.body["workload"]["uid"], reply.body["workload"]["state"]) == ("u", "pending")


def test_a_bug_is_a_500_and_a_line_in_the_log(agent: FakeAgent) -> None:
    async def fall(_: Workload) -> None:
        raise KeyError("secret")

    agent.core.before_ack = fall
    reply = agent.add()
    assert reply.error == (500, "internal")
    assert "secret" not in str(reply.body)
    (bug,) = agent.log.bugs
    assert "KeyError: 'secret'" in str(bug["traceback"])
    agent.log.events.clear()
    assert agent.ask("GET", "/v1/status").status == 200


# ---- requests in work ----------------------------------------------------------------------------


def holding(agent: FakeAgent) -> asyncio.Event:
    """Adds wait for this event, which belongs to the loop of the agent."""

    async def make() -> asyncio.Event:
        return asyncio.Event()

    release = agent.run(make())

    async def wait(_: Workload) -> None:
        await release.wait()

    agent.core.before_ack = wait
    return release


def let_go(agent: FakeAgent, release: asyncio.Event) -> None:
    async def go() -> None:
        release.set()

    agent.run(go())


def test_a_client_that_goes_away_does_not_cancel_the_intent(agent: FakeAgent) -> None:
    release = holding(agent)
    body = b'{"netns":"/a","uid":"u"}'
    with agent.connected() as sock:
        sock.sendall(POST % len(body))
        sock.sendall(body)
        assert agent.core.added.acquire(timeout=LIMIT)
    assert agent.ask("GET", "/v1/workloads/u").body["state"] == "pending"
    let_go(agent, release)
    assert agent.core.ended.acquire(timeout=LIMIT)
    assert agent.core.finished == ["u"]


def test_an_add_that_waits_holds_up_nobody(agent: FakeAgent) -> None:
    release = holding(agent)
    with ThreadPoolExecutor() as pool:
        adding = pool.submit(agent.add)
        assert agent.core.added.acquire(timeout=LIMIT)
        assert agent.ask("GET", "/v1/status").status == 200
        assert not adding.done()
        let_go(agent, release)
        assert adding.result(LIMIT).status == 200


def test_close_lets_what_is_in_work_end_and_refuses_the_rest(directory: Path) -> None:
    with FakeAgent(directory, Bounds(drain=LIMIT)) as agent, ThreadPoolExecutor() as pool:
        release = holding(agent)
        adding = pool.submit(agent.add)
        assert agent.core.added.acquire(timeout=LIMIT)
        with agent.connected() as early, agent.connected() as idle:
            early.sendall(b"GET /v1/sta")  # a request that has begun is answered, an idle one not
            agent.run(_served(agent, 3))
            closing = pool.submit(agent.close)
            assert idle.recv(1) == b""
            assert not Path(agent.path).exists()
            early.sendall(b"tus HTTP/1.1\r\nHost: a\r\n\r\n")
            assert received(early).error == (503, "shutting-down")
            assert not closing.done()
            let_go(agent, release)
            assert adding.result(LIMIT).status == 200
            closing.result(LIMIT)


async def _served(agent: FakeAgent, count: int) -> None:
    """Until so many connections are accepted and what they sent was read."""
    while len(agent.control._connections()) < count:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)


def test_close_ends_what_does_not_end_by_itself(directory: Path) -> None:
    with FakeAgent(directory, Bounds(drain=0.2)) as agent, ThreadPoolExecutor() as pool:
        holding(agent)
        adding = pool.submit(agent.add)
        assert agent.core.added.acquire(timeout=LIMIT)
        agent.close()
        reply = adding.result(LIMIT)
        assert reply.error == (503, "shutting-down")
        assert agent.core.finished == []


def test_close_twice_and_before_start(directory: Path) -> None:
    with FakeAgent(directory, Bounds()) as agent:
        agent.close()
        agent.close()
    assert threading.active_count() >= 1
    assert list(directory.iterdir()) == []
