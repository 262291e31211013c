"""HAProxy as a transparent relay in a pod, in the configurations that were measured as its best.

With `server NAME 0.0.0.0` and no port HAProxy connects to where the client wanted to go: behind a
redirection it asks SO_ORIGINAL_DST for that by itself.

HAProxy 2.6, medians of 12 to 40 interleaved rounds on two CPUs, each against the first line:

    configuration                           one stream   short ones   ping on one CPU
    splice-auto, a thread for each CPU      7.3 Gb/s     7670 /s      40.7 us
    one thread                              1.0          0.86         1.0
    no splice                               1.0          1.0          1.0
    tcp-smart-connect and -accept           1.0          1.03         1.0
    tune.listener.multi-queue off           1.0          1.0          1.0
    tune.bufsize 64 KiB, 256 KiB, no splice 1.4, 1.7     1.0
    splice-request and -response            1.8          1.0
    the same, tune.pipesize 256 KiB, 1 MiB  2.0, 2.0     1.0          1.08

So one is for traffic of every kind, as its manual advises, and one for bulk alone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

from bench import programs
from bench.inpod import inside, tool
from bench.relay_rules import PROXY_UID
from pyztun.testing import Pod

PORT = 15001
MAX_CONNECTIONS = 4000
"""Each takes two descriptors, and HAProxy refuses to start where the hard limit has no room."""
PIPE_SIZE = 1 << 20


def program() -> str:
    """The command. Skipped where it is missing, or cannot become the user that the rules know."""
    for kind in ("uid", "gid"):
        if not _mapped(Path(f"/proc/self/{kind}_map").read_text()):
            raise programs.Skipped(f"this user namespace has no {kind} {PROXY_UID}")
    return tool("haproxy")


def _mapped(table: str) -> bool:
    """Whether the table of a user namespace has the id of HAProxy."""
    ranges = ([int(word) for word in line.split()] for line in table.splitlines())
    return any(first <= PROXY_UID < first + count for first, _, count in ranges)


ALL_KINDS = """
    option splice-auto
    option tcp-smart-connect
    option tcp-smart-accept
"""
"""Of a proxy: splice() where HAProxy thinks that it pays."""

BULK = """
    option splice-request
    option splice-response
"""
"""Of a proxy: splice() always."""


def configuration(cpus: int, options: str) -> str:
    """No log, no checks, a thread for each CPU.

    A pipe is bounded by fs.pipe-max-size, which is 1 MiB unless somebody changed it.
    """
    return f"""
global
    uid {PROXY_UID}
    gid {PROXY_UID}
    nbthread {cpus}
    maxconn {MAX_CONNECTIONS}
    tune.pipesize {PIPE_SIZE}
defaults
    mode tcp
    maxconn {MAX_CONNECTIONS}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
{options}
listen outbound
    bind 0.0.0.0:{PORT}
    server original 0.0.0.0
"""


def start(stack: ExitStack, shop: programs.Workshop, pod: Pod, options: str) -> programs.Process:
    """HAProxy in a pod, listening; ends with the stack.

    :param options: ALL_KINDS or BULK.
    """
    file = shop.directory / "haproxy.cfg"
    file.write_text(configuration(len(os.sched_getaffinity(0)), options))
    argv = inside(pod, program(), "-db", "-f", str(file))
    process = stack.enter_context(programs.Process(argv, shop.directory, talks=False))
    _wait_for_listener(process, pod)
    return process


def _wait_for_listener(process: programs.Process, pod: Pod) -> None:
    """A connection would be relayed to where it went, to itself: so the kernel is asked instead."""
    deadline = monotonic() + programs.PATIENCE
    while not _listens(process, pod):
        if monotonic() > deadline:
            raise programs.BenchError(f"haproxy does not listen: {process.said().strip()}")
        sleep(0.01)


def _listens(process: programs.Process, pod: Pod) -> bool:
    """Whether it is in the pod, and the port there in state LISTEN."""
    folder = Path(f"/proc/{process.pid}")
    try:
        if (folder / "ns/net").stat().st_ino != pod.netns.inode:
            return False
        lines = (folder / "net/tcp").read_text().splitlines()[1:]
    except OSError:  # it has ended
        raise process.failure() from None
    found = (line.split()[1:4:2] for line in lines)
    return any(local.endswith(f":{PORT:04X}") and state == "0A" for local, state in found)
