"""Client and service in two pods, as they will be in production."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyztun import NetNs
from pyztun.testing import PodPair

from podhealth import HealthService, probe

PROJECT = Path(__file__).resolve().parents[1]
PORT = 80


def inside(netns: NetNs, *arguments: str) -> "subprocess.Popen[str]":
    """Starts `python -m podhealth ARGUMENTS` inside a netns, which needs no name for that."""
    there = f"--net=/proc/{os.getpid()}/fd/{netns.fileno()}"
    command = ["nsenter", there, "--", sys.executable, "-m", "podhealth", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_probe_from_the_other_pod(pod_pair: PodPair, version: str) -> None:
    address = getattr(pod_pair.right, version)
    (listener,) = pod_pair.right.netns.listen((address, PORT))
    with HealthService(listener, lambda: None):
        assert probe(address, PORT, connect=pod_pair.left.netns.connect).ok


def test_loopback_service_is_not_seen_by_the_other_pod(pod_pair: PodPair) -> None:
    left, right = pod_pair
    (listener,) = right.netns.listen(("127.0.0.1", PORT))
    with HealthService(listener, lambda: None):
        assert probe("127.0.0.1", PORT, connect=right.netns.connect).ok
        assert not probe(right.ipv4, PORT, connect=left.netns.connect).ok
        assert not probe("127.0.0.1", PORT, connect=left.netns.connect).ok


def test_commands_inside_pods(pod_pair: PodPair) -> None:
    left, right = pod_pair
    service = [right.ipv6, str(PORT)]
    with inside(right.netns, "serve", *service) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"answers on {right.ipv6} port {PORT}\n"
        with inside(left.netns, "probe", *service) as client:
            assert client.communicate()[0] == "ok\n"
        assert client.returncode == 0
        server.terminate()
    assert server.returncode == 0
    with inside(left.netns, "probe", *service) as client:
        assert client.communicate()[0] == "Connection refused\n"
    assert client.returncode == 1
