"""Listeners that root in a pod destroys are made again, and what becomes of it where that fails."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from receiver_site import Receiver

from pyztun.errors import SyscallError
from pyztun.ztunnel.inpod import InPod
from support import zt_zds
from support.pods import Pod
from support.zt_zds import blocker, ports, until

MakePod = Callable[[], Pod]
EVERY = range(len(zt_zds.PORTS))


@pytest.fixture
def receiver(sock_path: str) -> Iterator[Receiver]:
    with contextlib.closing(Receiver(sock_path)) as receiver:
        yield receiver


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], None]:
    """Has a method of InPod fail, until it is called."""
    how = getattr(InPod, name)

    def fail(*_: Any) -> None:
        raise SyscallError(errno.EMFILE, "socket: EMFILE")

    monkeypatch.setattr(InPod, name, fail)
    return lambda: monkeypatch.setattr(InPod, name, how)


def is_whole(receiver: Receiver, pod: Pod) -> bool:
    return not receiver.served(pod).destroyed


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 2], list(EVERY)])
def test_it_and_nothing_else_is_made_again(
    receiver: Receiver, make_pod: MakePod, lost: list[int]
) -> None:
    one, two = make_pod(), make_pod()
    for uid, pod in (("u", one), ("v", two)):
        receiver.takes(uid, pod)
    before, others = receiver.served(one), list(receiver.served(two).listeners)
    kept = {i: fd for i, fd in enumerate(before.listeners) if i not in lost}
    for index in lost:
        receiver.destroy(one, index)
    assert before.destroyed == lost
    receiver.wait.look()
    until(lambda: is_whole(receiver, one), "mended")
    assert receiver.served(one) is before
    assert {i: before.listeners[i] for i in kept} == kept
    assert receiver.served(two).listeners == others
    assert ports(one) == ports(two) == zt_zds.PORTS
    assert receiver.knows(("u", one), ("v", two))


def test_a_look_where_all_is_well_changes_nothing(receiver: Receiver, make_pod: MakePod) -> None:
    pod = make_pod()
    receiver.takes("u", pod)
    before = receiver.served(pod), list(receiver.served(pod).listeners)
    for _ in range(10):
        receiver.wait.look()
    assert (receiver.served(pod), receiver.served(pod).listeners) == before


def test_an_add_mends_too(receiver: Receiver, make_pod: MakePod) -> None:
    pod = make_pod()
    receiver.takes("u", pod)
    before = receiver.served(pod)
    receiver.destroy(pod, 1)
    assert receiver.link.add("u", pod) == ""
    assert receiver.served(pod) is before
    assert is_whole(receiver, pod)


def test_what_cannot_be_had_is_tried_again_and_nothing_else_ends(
    receiver: Receiver, make_pod: MakePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Add is refused meanwhile, so that the agent knows."""
    pod = make_pod()
    receiver.takes("u", pod)
    before = receiver.served(pod)
    kept = before.listeners[0], before.listeners[2]
    works_again = failing(monkeypatch, "open_one")
    receiver.destroy(pod, 1)
    receiver.wait.look()
    answer = receiver.link.add("u", pod)
    assert "EMFILE" in answer
    assert "tried again" in answer
    assert before.destroyed == [1]
    assert receiver.knows(("u", pod))
    works_again()
    until(lambda: is_whole(receiver, pod), "healed")
    assert receiver.served(pod) is before
    assert (before.listeners[0], before.listeners[2]) == kept
    assert receiver.link.add("u", pod) == ""


def test_so_is_what_is_about_to_be_replaced(receiver: Receiver, make_pod: MakePod) -> None:
    """It is served until then; and the wait for the other netns goes on."""
    one, two = make_pod(), make_pod()
    receiver.takes("u", one)
    with blocker(two):
        assert "pending" in receiver.link.add("u", two)
        receiver.destroy(one, 1)
        receiver.wait.look()
        until(lambda: is_whole(receiver, one), "mended")
        assert ports(one) == zt_zds.PORTS
    until(lambda: receiver.knows(("u", two)), "replaced")
    assert ports(one) == set()
