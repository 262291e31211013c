"""How ztunnel ends, alone and beside a second one that serves the same pods."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from support import pods, zt_zds
from support.pods import Canary, Pod
from support.zt_daemon import frozen
from support.zt_zds import Agent, Link, Node, Start, add, blocker, ports, serves

MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


def requests_in_a_burst(link: Link, netns: list[int]) -> None:
    for number, fd in enumerate(netns):
        link.send(add(f"u{number}"), [fd])


def answers_until_the_end(link: Link) -> list[str]:
    answers = []
    while message := link.receive():
        answers.append(zt_zds.error_of(message))
    return answers


@pytest.mark.needs_netns
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_burst(start: Start, sock_path: str, number: signal.Signals) -> None:
    """Exit 0; each answer is true as far as they go, and no listener is left."""
    with ExitStack() as stack:
        netns = [pods.nameless_netns() for _ in range(60)]
        for fd in netns:
            stack.callback(os.close, fd)
        node = stack.enter_context(Node(start, sock_path))
        with frozen(node.daemon):
            requests_in_a_burst(node.link, netns)
        first = node.link.answer()
        node.daemon.process.send_signal(number)
        answers = [first, *answers_until_the_end(node.link)]
        assert node.daemon.wait() == 0
        assert answers == [""] * len(answers)
        assert len(answers) <= len(netns)
        assert [ports(fd) for fd in netns] == [set()] * len(netns)
        zt_zds.no_bug(node.daemon)


def test_a_signal_while_there_is_no_agent_and_something_is_pending(
    start: Start, sock_path: str, make_pod: MakePod, make_canary: MakeCanary
) -> None:
    served, taken = make_pod(), make_pod()
    canary = make_canary(taken)
    with Node(start, sock_path) as node:
        node.link.serve("served", served)
        with blocker(taken):
            assert node.link.add("taken", taken) != ""
            node.lose_agent()
            node.daemon.stderr.wait_for("cannot-connect")
            assert node.daemon.stop() == 0
        assert not serves(served)
        taken.delete()
        assert canary.died()
        zt_zds.no_bug(node.daemon)


def test_a_client_that_was_queued_is_served_and_the_agent_sees_the_end(
    start: Start, sock_path: str, pod: Pod
) -> None:
    with Node(start, sock_path) as node:
        node.link.serve("u", pod)
        with frozen(node.daemon):
            client = pod.connect(15006)  # it is queued on the listener
            node.daemon.process.send_signal(signal.SIGTERM)
        with client, pytest.raises(ConnectionResetError):
            client.recv(10)
        assert node.link.has_ended()
        assert node.daemon.wait() == 0


def test_sigkill_leaves_nothing(
    start: Start, sock_path: str, make_pod: MakePod, make_canary: MakeCanary
) -> None:
    """Neither listeners nor netns, served or pending, nor one on its way in a message."""
    some = [make_pod() for _ in range(4)]
    canaries = [make_canary(pod) for pod in some]
    with Node(start, sock_path) as node:
        node.link.serve("0", some[0])
        node.link.serve("1", some[1])
        with blocker(some[2]):
            assert node.link.add("2", some[2]) != ""
            with frozen(node.daemon), some[3].opened() as fd:
                node.link.send(add("3"), [fd])
                node.daemon.process.kill()
        assert node.daemon.wait() == -signal.SIGKILL
        assert node.link.has_ended()
        assert [ports(pod) for pod in some] == [set()] * len(some)
        for pod in some:
            pod.delete()
        assert all(canary.died() for canary in canaries)


def test_after_sigkill_the_next_one_is_told_everything(
    start: Start, sock_path: str, make_pod: MakePod
) -> None:
    some = [make_pod() for _ in range(3)]
    with Agent(sock_path) as agent:
        for _ in range(3):
            daemon = start("--zds", sock_path)
            link = agent.accept()
            for pod in some:
                link.serve(pod.name, pod)
            assert link.snapshot_sent() == ""
            assert all(serves(pod) for pod in some)
            daemon.kill()
            assert not any(serves(pod) for pod in some)


# ---- two at once, as in an upgrade ---------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("ends", ["the old one", "the new one"])
def test_two_serve_a_pod_and_either_may_end(
    start: Start, sock_path: str, pod: Pod, ends: str, number: signal.Signals
) -> None:
    with Node(start, sock_path) as node:
        node.link.serve("u", pod)
        second = start("--zds", sock_path)
        link = node.agent.accept()
        link.serve("u", pod)
        assert link.snapshot_sent() == ""
        both = {daemon: zt_zds.listeners(daemon) for daemon in (node.daemon, second)}
        assert [len(its) for its in both.values()] == [3, 3]
        assert len({each.inode for its in both.values() for each in its}) == 6
        assert serves(pod)
        gone, left, its = node.daemon, second, link
        if ends == "the new one":
            gone, left, its = second, node.daemon, node.link
        gone.stop(number)
        for _ in range(20):  # the kernel would spread them over two
            assert serves(pod)
        assert its.delete("u") == ""
        assert not serves(pod)
        assert left.stop() == 0


def test_without_reuse_port_the_second_one_waits_for_the_end_of_the_first(
    start: Start, sock_path: str, pod: Pod
) -> None:
    env = {"INPOD_PORT_REUSE": "false"}
    with Node(start, sock_path, env=env) as node:
        node.link.serve("u", pod)
        second = start("--zds", sock_path, env=env)
        link = node.agent.accept()
        assert "EADDRINUSE" in link.add("u", pod)
        assert link.snapshot_sent() == ""
        assert node.daemon.stop() == 0
        zt_zds.until(lambda: ports(pod) == zt_zds.PORTS, "the second one serves")
        assert serves(pod)
        assert second.stop() == 0


@pytest.mark.needs_root
def test_a_second_one_of_another_uid_may_not_share_the_ports(
    start: Start, shared_directory: str, pod: Pod, only_sys_admin: list[str]
) -> None:
    """The kernel wants both sockets to have one uid (net/core/sock_reuseport.c)."""
    path = f"{shared_directory}/zt.sock"
    with Node(start, path) as node:
        node.link.serve("u", pod)
        os.chmod(path, 0o666)
        second = start("--zds", path, wrap=only_sys_admin)
        link = node.agent.accept()
        assert "EADDRINUSE" in link.add("u", pod)
        assert serves(pod)
        assert second.stop() == 0
