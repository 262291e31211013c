"""What podside takes for each of its works: `-rP` shows what docs/capture.md tells."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

from capture.kit import ALL, Side, words
from pyztun import NetNs
from pyztun.cni.capture import wire
from support.nftables import run_nft

PODS = 12
SLOWEST = 1.0
"""Seconds in which a repair has to be done."""
DAMAGES: dict[str, Callable[[NetNs], str]] = {
    "nft flush ruleset": lambda pod: run_nft(pod, "flush ruleset\n"),
    "ip rule del": lambda pod: words(pod, "ip rule del pref 32764"),
}


def test_what_it_takes() -> None:
    """Of fresh pods, one after the other."""
    with ExitStack() as stack:
        side = stack.enter_context(Side())
        pods = [stack.enter_context(NetNs.create()) for _ in range(PODS)]
        with NetNs.create() as first:  # libraries are loaded, and what is expected is learned
            side.done("capture", first)
            side.done("forget", first)
        show("capture of a fresh pod", pods, lambda pod: whole(side, pod, ALL))
        show("capture that changes nothing", pods, lambda pod: whole(side, pod, ()))
        for damage in DAMAGES:
            slowest = show(f"{damage}, repaired", pods, partial(repair, side, damage))
            assert slowest < SLOWEST
        show("release", pods, lambda pod: side.done("release", pod))


def whole(side: Side, pod: NetNs, written: tuple[str, ...]) -> None:
    assert side.done("capture", pod).written == written


def repair(side: Side, damage: str, pod: NetNs) -> None:
    DAMAGES[damage](pod)
    assert isinstance(side.notice(), wire.Repaired)


def show(what: str, pods: list[NetNs], work: Callable[[NetNs], object]) -> float:
    """Does it in each; the seconds of the slowest."""
    took = []
    for pod in pods:
        began = time.monotonic()
        work(pod)
        took.append(time.monotonic() - began)
    print(f"{what}: {1000 * median(took):.1f} ms, at most {1000 * max(took):.1f}")
    return max(took)
