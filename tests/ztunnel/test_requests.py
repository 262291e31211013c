"""The seed form against the real daemon: take, release, list, and what is idempotent."""

import errno
import os
import re
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from support import leaks, pods, wire
from support.pods import Canary, Pod
from support.programs import Daemon, cni
from support.zt_daemon import (
    ADDRESSES,
    LISTENERS,
    PORTS,
    listing,
    netns,
    settled_fds,
    wait_until_fds_are,
)

Start = Callable[..., Daemon]
MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


def ready(pod: Pod) -> str:
    return f"ready {ADDRESSES} netns={pod.cookie}"


def test_the_answers_of_the_table(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    with wire.Peer(sock_path) as peer, pod.opened() as fd:
        assert peer.ask(wire.LIST) == "end"
        assert peer.ask(wire.TAKE, [fd]) == ready(pod)
        assert pod.listening() == set(LISTENERS)
        assert peer.ask(wire.LIST) == f"held {ADDRESSES} netns={pod.cookie}"
        assert peer.line() == "end"
        assert peer.ask(wire.RELEASE, [fd]) == f"released netns={pod.cookie}"
        assert pod.listening() == set()
        assert peer.ask(wire.LIST) == "end"
        assert peer.ask(wire.RELEASE_COOKIE + b"4711\n") == "released netns=4711"


def test_the_same_netns_twice_is_idempotent(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    with pod.opened() as fd, wire.Peer(sock_path) as first, wire.Peer(sock_path) as second:
        assert second.ask(wire.LIST) == "end"
        assert first.ask(wire.TAKE, [fd]) == ready(pod)
        held = settled_fds(ztunnel, sock_path)
        for peer in (first, second, first):
            assert peer.ask(wire.TAKE, [fd]) == ready(pod)
        wait_until_fds_are(ztunnel, held)
    assert listing(sock_path) == [f"held {ADDRESSES} netns={pod.cookie}"]
    ztunnel.stop()
    assert ztunnel.stdout.all() == ["listeners ready"]


def test_another_descriptor_of_the_same_netns(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    """A path, a process and a duplicate name one netns: identity is the kernel's, not the fd's."""
    with pod.opened() as fd:
        again = os.dup(fd)
        through = pods.in_netns(fd, lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        with wire.Peer(sock_path) as peer:
            assert peer.ask(wire.TAKE, [fd]) == ready(pod)
            assert peer.ask(wire.TAKE, [again]) == ready(pod)
            assert peer.ask(wire.TAKE, [through]) == ready(pod)
            assert peer.ask(wire.RELEASE, [through]) == f"released netns={pod.cookie}"
            assert peer.ask(wire.LIST) == "end"
        os.close(again)
        os.close(through)


@pytest.mark.parametrize("by", ["fd", "cookie"])
def test_release_twice_and_of_what_was_never_held(
    make_pod: MakePod, ztunnel: Daemon, sock_path: str, by: str
) -> None:
    held, other = make_pod(), make_pod()
    with held.opened() as fd, other.opened() as other_fd, wire.Peer(sock_path) as peer:

        def release(pod: Pod, pod_fd: int) -> str:
            if by == "fd":
                return peer.ask(wire.RELEASE, [pod_fd])
            return peer.ask(wire.RELEASE_COOKIE + b"%d\n" % pod.cookie)

        peer.ask(wire.TAKE, [fd])
        assert release(other, other_fd) == f"released netns={other.cookie}"
        assert held.listening() == set(LISTENERS)
        for _ in range(2):
            assert release(held, fd) == f"released netns={held.cookie}"
            assert held.listening() == set()
        assert peer.ask(wire.TAKE, [fd]) == ready(held)


def test_release_in_either_order_leaves_nothing_of_the_pod(
    make_pod: MakePod, make_canary: MakeCanary, ztunnel: Daemon, sock_path: str
) -> None:
    before = settled_fds(ztunnel, sock_path)
    first, second = make_pod(), make_pod()
    canaries = [make_canary(first), make_canary(second)]
    with first.opened() as one, second.opened() as two, wire.Peer(sock_path) as peer:
        peer.ask(wire.TAKE, [one])
        peer.ask(wire.TAKE, [two])
        assert peer.ask(wire.RELEASE, [one]).startswith("released")
    first.delete()
    assert canaries[0].died()
    second.delete()
    assert canaries[1].alive, "its listeners hold it"
    wire.request(sock_path, wire.RELEASE_COOKIE + b"%d\n" % second.cookie)
    assert canaries[1].died()
    wait_until_fds_are(ztunnel, before)


def test_a_new_netns_under_an_old_path_is_another_workload(
    pod: Pod, ztunnel: Daemon, sock_path: str
) -> None:
    assert cni(sock_path, pod.path).stdout == "listeners ready\n"
    pod.delete()
    again = Pod(pod.name)
    try:
        assert again.cookie != pod.cookie
        assert cni(sock_path, again.path).stdout == "listeners ready\n"
        assert again.listening() == set(LISTENERS)
        cookies = {line.rpartition("=")[2] for line in listing(sock_path)}
        assert cookies == {str(pod.cookie), str(again.cookie)}
    finally:
        again.delete()


def test_a_dead_netns_of_which_a_descriptor_was_kept(
    pod: Pod, make_canary: MakeCanary, ztunnel: Daemon, sock_path: str
) -> None:
    """The descriptor keeps it alive though nothing names it: it is served as any other."""
    canary = make_canary(pod)
    with pod.opened() as fd:
        pod.delete()
        with wire.Peer(sock_path) as peer:
            assert peer.ask(wire.TAKE, [fd]) == ready(pod)
            assert peer.ask(wire.RELEASE, [fd]) == f"released netns={pod.cookie}"
    assert canary.died()


# ---- addresses and ports -------------------------------------------------------------------------


def test_a_port_in_use_in_the_pod_is_all_or_nothing_and_the_retry_works(
    pod: Pod, ztunnel: Daemon, sock_path: str
) -> None:
    before = settled_fds(ztunnel, sock_path)
    with pods.in_netns(pod.path, socket.socket) as occupant, pod.opened() as fd:
        occupant.bind(("127.0.0.1", 15001))
        occupant.listen()
        with wire.Peer(sock_path) as peer:
            answer = peer.ask(wire.TAKE, [fd])
            assert re.fullmatch(r"error bind 127\.0\.0\.1:15001 in .*: EADDRINUSE.*", answer)
            assert pod.listening() == {"127.0.0.1:15001"}
            assert peer.ask(wire.LIST) == "end"
            occupant.close()
            assert peer.ask(wire.TAKE, [fd]) == ready(pod)
            assert pod.listening() == set(LISTENERS)
            peer.ask(wire.RELEASE, [fd])
    wait_until_fds_are(ztunnel, before)


def test_listeners_by_option_in_both_families(pod: Pod, start: Start, sock_path: str) -> None:
    asked = ["0.0.0.0:15006", "[::]:15006", "[::1]:15008"]
    words = [word for address in asked for word in ("--listen", address)]
    start(sock_path, *words, "--backlog", "7")
    with pod.opened() as fd:
        assert wire.request(sock_path, wire.TAKE, [fd]) == (
            f"ready {' '.join(asked)} netns={pod.cookie}"
        )
    assert pod.ask(15006) == pod.ask(15006, host="::1") == pod.ask(15008, host="::1") == b"ok\n"
    assert pod.refuses(15008)


def test_an_address_that_the_pod_does_not_have(pod: Pod, start: Start, sock_path: str) -> None:
    start(sock_path, "--listen", "10.9.8.7:15006")
    with pod.opened() as fd, wire.Peer(sock_path) as peer:
        answer = peer.ask(wire.TAKE, [fd])
        assert answer.startswith("error bind 10.9.8.7:15006")
        assert "EADDRNOTAVAIL" in answer
        assert peer.ask(wire.LIST) == "end"


def test_connections_get_ok_and_a_clean_end(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    """Never a reset, also for a client that talks first and much."""
    assert cni(sock_path, pod.path).returncode == 0
    for port in PORTS:
        assert pod.ask(port) == b"ok\n"
        assert pod.ask(port, b"GET / HTTP/1.1\r\n\r\n") == b"ok\n"
        assert pod.ask(port, bytes(3_000_000)) == b"ok\n"
    assert pod.refuses(15002)


def test_a_client_that_never_ends_delays_no_other(
    pod: Pod, ztunnel: Daemon, sock_path: str
) -> None:
    assert cni(sock_path, pod.path).returncode == 0
    clients = [pod.connect(15008) for _ in range(100)]
    try:
        assert pod.ask(15008) == b"ok\n"
        for client in clients:
            assert client.recv(10) == b"ok\n"
    finally:
        for client in clients:
            client.close()


# ---- home ----------------------------------------------------------------------------------------


def test_home_is_refused_and_the_connection_stays(ztunnel: Daemon, sock_path: str) -> None:
    with open("/proc/self/ns/net") as home, wire.Peer(sock_path) as peer:
        assert peer.ask(wire.TAKE, [home.fileno()]) == "error home netns"
        assert peer.ask(wire.LIST) == "end"
    done = cni(sock_path, "/proc/self/ns/net")
    assert done.returncode == 1
    assert "home netns" in done.stderr


def test_home_is_taken_if_allowed(start: Start, sock_path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start(sock_path, "--allow-home", "--listen", f"127.0.0.1:{port}")
    with open("/proc/self/ns/net") as home:
        answer = wire.request(sock_path, wire.TAKE, [home.fileno()])
    assert answer.startswith(f"ready 127.0.0.1:{port} netns=")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        assert pods.read_to_end(client) == b"ok\n"


@pytest.mark.needs_netns
def test_the_initial_netns_is_refused_by_a_daemon_that_lives_elsewhere(
    start: Start, sock_path: str
) -> None:
    try:
        initial = os.open("/proc/1/ns/net", os.O_RDONLY)
    except OSError as error:
        pytest.skip(f"/proc/1/ns/net: {errno.errorcode[error.errno or 0]}, as for the daemon")
    try:
        start(sock_path, wrap=["unshare", "--net"])
        assert wire.request(sock_path, wire.TAKE, [initial]) == "error initial netns"
    finally:
        os.close(initial)


# ---- many ----------------------------------------------------------------------------------------


@pytest.mark.needs_netns
def test_many_pods_and_many_senders_at_once(ztunnel: Daemon, sock_path: str) -> None:
    """Each of 8 senders takes all 48 pods and releases a sixth; what is left is exact."""
    before = settled_fds(ztunnel, sock_path)
    home = pods.listening()
    with netns(48) as all_pods:
        wrong: list[str] = []

        def send(number: int) -> None:
            with wire.Peer(sock_path) as peer:
                for each in all_pods[number:] + all_pods[:number]:
                    answer = peer.ask(wire.TAKE, [each.fileno()])
                    if answer != f"ready {ADDRESSES} netns={each.cookie}":
                        wrong.append(answer)

        senders = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert wrong == []
        assert set(listing(sock_path)) == {f"held {ADDRESSES} netns={n.cookie}" for n in all_pods}
        for each in all_pods:
            assert pods.listening(each.fileno()) == set(LISTENERS)
        assert pods.listening() & set(LISTENERS) == home & set(LISTENERS)
        for each in all_pods:
            wire.request(sock_path, wire.RELEASE, [each.fileno()])
            assert pods.listening(each.fileno()) == set()
    wait_until_fds_are(ztunnel, before)
    assert ztunnel.netns_inode() == leaks.netns_inode()


@pytest.mark.needs_netns
def test_the_limit_of_workloads_is_told(start: Start, sock_path: str) -> None:
    start(sock_path, "--max-workloads", "2")
    with netns(3) as some, wire.Peer(sock_path) as peer:
        answers = [peer.ask(wire.TAKE, [each.fileno()]) for each in some]
        assert [answer.split()[0] for answer in answers] == ["ready", "ready", "error"]
        assert answers[2] == "error the limit of 2 workloads is reached"
        assert peer.ask(wire.TAKE, [some[0].fileno()]).startswith("ready")
        assert peer.ask(wire.RELEASE, [some[0].fileno()]).startswith("released")
        assert peer.ask(wire.TAKE, [some[2].fileno()]).startswith("ready")


@pytest.fixture
def crowd(start: Start, sock_path: str) -> tuple[Daemon, int]:
    """A daemon that holds 800 pods, of which nothing but its listeners is left."""
    daemon = start(sock_path)
    with netns(800) as all_pods, wire.Peer(sock_path) as peer:
        for each in all_pods:
            assert peer.ask(wire.TAKE, [each.fileno()]).startswith("ready")
    return daemon, 800


@pytest.mark.slow
@pytest.mark.needs_netns
def test_a_long_list_read_slowly_is_whole(crowd: tuple[Daemon, int], sock_path: str) -> None:
    """Eight lists in a row are more than a socket buffer holds; others are served meanwhile."""
    _, count = crowd
    with wire.Peer(sock_path) as peer:
        peer.send(wire.LIST * 8)
        text = b""
        while text.count(b"end\n") < 8:
            more = peer.socket.recv(8192)
            assert more, "closed too early"
            text += more
            if text.count(b"\n") % 500 == 0:
                assert wire.request(sock_path, wire.RELEASE_COOKIE + b"1\n") == "released netns=1"
    lists = text.split(b"end\n")[:8]
    assert len(set(lists)) == 1
    lines = lists[0].decode().splitlines()
    assert len(lines) == len(set(lines)) == count
    assert all(line.startswith(f"held {ADDRESSES} netns=") for line in lines)


@pytest.mark.slow
@pytest.mark.needs_netns
def test_lists_that_are_being_read_are_finished_by_a_drain(
    crowd: tuple[Daemon, int], sock_path: str
) -> None:
    daemon, count = crowd
    with wire.Peer(sock_path) as peer:
        peer.send(wire.LIST * 8)
        assert peer.line().startswith("held")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_notification("STOPPING=1")
        lines = peer.lines()
        assert lines.count("end") == 8
        assert len(lines) == 8 * (count + 1) - 1
    assert daemon.wait() == 0
