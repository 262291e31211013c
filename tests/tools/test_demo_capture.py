"""`pyztun demo --capture`: what it shows, and what is left when it is interrupted or killed."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_run import STEPS, DemoRun, check_fits, one, require_nft, steps

from pyztun.tools.evidence import Connection, connections_of

pytestmark = pytest.mark.needs_named_netns

MILLISECONDS = r"(\d+)(?:\.\d)? ms"


@pytest.fixture
def run(directory: Path) -> Iterator[DemoRun]:
    require_nft()
    with DemoRun(directory, "--plain", "--capture") as demo:
        yield demo


def test_evidence_of_the_issue(run: DemoRun) -> None:
    assert run.finish() == 0, "\n".join(run.out + run.err)
    assert run.seconds < 15
    assert run.err == []
    check_fits(run.out)
    count = sum(line.startswith("  [ok] ") for line in run.out)
    assert one(r"^All (\d+) observations were as told", run.out)[1] == str(count)
    _, plain, programs, added, relayed, killed, back, flushed, deleted, end = steps(run.out)

    page = one(r"the page: (65536 bytes, sha256 [0-9a-f]{12})$", plain)[1]
    for step in (plain, relayed, back, flushed, deleted):
        one(rf"cache.* gets the page: {page}$", step)
    for step in (plain, deleted):
        one(r"the peer of the client's socket is the server's: 10\.0\.0\.2:\d+, 10\.0", step)

    first = one(r"ztunnel, pid (\d+), reports: READY=1$", programs)[1]
    one(r"^    ready web uid=pod-1 netns=\d+$", added)
    one(r"^    connections from before were reset$", added)
    one(r"a connection from before, half a request on it, is cut: reset$", added)
    one(r"the rules in cache redirect to: 15006, 15006, 15001, 15001$", added)
    one(r"^    32764: from all fwmark 0x111/0xfff lookup 100$", added)
    one(r"^    local default dev lo ", added)

    source = one(r"ztunnel, fd \d+ +cache +127\.0\.0\.1:15001 +10\.0\.0\.2:(\d+)$", relayed)[1]
    one(rf"client, fd \d+ +cache +10\.0\.0\.2:{source} +10\.0\.0\.1:8080$", relayed)
    one(r"ztunnel, fd \d+ +web +10\.0\.0\.1:15006 +10\.0\.0\.2:\d+$", relayed)
    one(r"ztunnel, fd \d+ +web +10\.0\.0\.2:\d+ +10\.0\.0\.1:8080$", relayed)
    one(r"the server saw the address of cache: 10\.0\.0\.2$", relayed)
    one(rf" access connection complete src.addr=10\.0\.0\.2:{source}$", relayed)
    if os.path.exists("/proc/sys/net/ipv6"):
        one(r"the server saw the address of cache: fd00::2$", relayed)

    one(rf"\$ kill -KILL {first}$", killed)
    for who in ("cache", "the node"):
        one(rf"a client in {who} is refused at once: refused after {MILLISECONDS}$", killed)
    one(r"the server saw nothing of it: none$", killed)
    one(r"are listed as pending: no ztunnel connected", killed)
    one(r"nobody had to touch the rules: the same in both pods$", back)
    repaired = one(rf"rules in cache are back, every line: {MILLISECONDS} after the flush", flushed)
    assert int(repaired[1]) < 1000
    one(r"the agent logs rules-repaired: rules of demo-cache-", flushed)
    one(r"and is cut by the repair: reset$", flushed)
    one(r"no rule is left in cache: 0 lines$", deleted)
    for name in ("web", "cache", "the node"):
        one(rf"the kernel reports the end of {name}: netlink message RTM_DELNSID", end)
    assert run.left_behind() == []


def test_interrupted_at_work_it_cleans_up(run: DemoRun) -> None:
    run.process.stdout.wait_for(f"[4/{STEPS}]")
    run.process.process.send_signal(signal.SIGINT)
    assert run.finish() == 1
    assert run.err == ["pyztun demo: interrupted; everything is cleaned up"]
    assert run.left_behind() == []


def test_interrupted_while_podside_is_stopped(run: DemoRun) -> None:
    run.process.stdout.wait_for("$ kill -STOP")
    run.process.process.send_signal(signal.SIGTERM)
    assert run.finish() == 1
    assert run.left_behind() == []


def test_killed_demo_takes_its_programs_along(run: DemoRun) -> None:
    """The server in the pod, and podside, too. Names are left, which the next demo removes."""
    run.process.stdout.wait_for(f"[5/{STEPS}]")
    run.process.process.kill()
    run.finish()
    deadline = time.monotonic() + 10
    while run.processes() and time.monotonic() < deadline:
        os.sched_yield()
    assert run.processes() == []
    names = run.names()
    assert [re.sub(r"\d+", "", name) for name in sorted(names)] == ["demo-cache-", "demo-web-"]
    with DemoRun(run.directory, "--plain", "--zds") as after:
        after.process.stdout.wait_for(f"[1/{STEPS}]")
    assert run.left_behind() == []


def test_ends_of_connections_are_read_whole() -> None:
    tcp = "header\n0: 0100007F:3A99 0200000A:8C34 01 0:0 0:0 0 0 0 77 1\n"
    tcp += "1: 00000000:1F90 00000000:0000 0A 0:0 0:0 0 0 0 78 1\n"
    mapped = "0000000000000000FFFF00000100000A"
    tcp6 = f"header\n0: {mapped}:1F90 {mapped}:8C34 01 0:0 0:0 0 0 0 79 1\n"
    assert connections_of(tcp, tcp6) == [
        Connection("127.0.0.1:15001", "10.0.0.2:35892", 77),
        Connection("10.0.0.1:8080", "10.0.0.1:35892", 79),
    ]
