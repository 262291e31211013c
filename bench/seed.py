"""Row `seed`: from connect() to the answer, with one client for every receiver.

Nothing is pinned to a CPU. Where the kernel puts client and receiver moves the absolute figures
(from 50 to 80 us for the floor), and it puts each contender where it puts the others.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import programs
from bench.rounds import Turn, interleave
from bench.statistics import Row
from pyztun import NetNs

NAME = "seed"
TITLE = "seed form, from connect() to the answer"
ROUNDS = 400
BUDGET, AIM = 1.5, 1.2
GO_BUDGET = 0.8
PODS = 5
CYCLES = 15
PAUSE_US = 300


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "us")
    floor, ours = shop.socket_path(), shop.socket_path()
    with ExitStack() as stack:
        stack.enter_context(programs.receiver([shop.floor, "receive", floor], shop))
        stack.enter_context(programs.ztunnel([ours], shop))
        turns = {"floor": asking(stack, shop, floor), "pyztun-ztunnel": asking(stack, shop, ours)}
        try:
            argv = [shop.go_receiver, "-loop", shop.socket_path()]
            stack.enter_context(programs.receiver(argv, shop))
            turns["Go receiver"] = asking(stack, shop, argv[-1])
        except programs.Skipped as reason:
            row.notes.append(f"without Go receiver: {reason}")
        row.samples = interleave(NAME, turns, rounds)
    row.compare("pyztun-ztunnel", "floor", BUDGET, AIM)
    if "Go receiver" in turns:
        row.compare("pyztun-ztunnel", "Go receiver", GO_BUDGET)
        row.compare("Go receiver", "floor")
    return row


def asking(stack: ExitStack, shop: programs.Workshop, path: str) -> Turn:
    """A turn of a client with the receiver on PATH; microseconds a handoff. Ends with the stack."""
    pods = [stack.enter_context(NetNs.create()).fileno() for _ in range(PODS)]
    argv = [shop.client, *map(str, pods)]
    client = stack.enter_context(programs.Process(argv, shop.directory, inherited=pods))
    command = f"{CYCLES} {PAUSE_US} {path}"
    return lambda: [ns / 1000 for ns in client.ask(command)]
