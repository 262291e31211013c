"""Row `zds-pods`: what a thousand workloads cost one ztunnel, in memory and in the time of an Add.

As in the row `pods` two ztunnels are asked in turn, of which one serves a thousand from a snapshot.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import crowd, programs
from bench.rounds import interleave
from bench.statistics import Row
from bench.zds import Agent, fresh_pods

NAME = "zds-pods"
TITLE = f"ZDS, a ztunnel that serves {crowd.SIZE} workloads beside one that serves none"
ROUNDS = 250
BUDGET = 1.2


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row. Skipped where the fd table is too small."""
    row = Row(NAME, TITLE, "us")
    holding, none = f"{crowd.SIZE} held", "none held"
    with ExitStack() as stack:
        held = crowd.gather(stack)
        empty, full = (
            Agent(stack, shop, fresh_pods(stack)),
            Agent(stack, shop, fresh_pods(stack), held),
        )
        small = stack.enter_context(programs.ztunnel(["--zds", empty.path], shop))
        empty.snapshot()
        without = crowd.memory(small.pid)
        empty.cycles(1)
        large = stack.enter_context(programs.ztunnel(["--zds", full.path], shop))
        full.snapshot()
        full.cycles(1)
        row.checks += crowd.memory_checks(without, crowd.memory(small.pid), crowd.memory(large.pid))
        row.samples = interleave(NAME, {none: empty.turn, holding: full.turn}, rounds)
    row.compare(holding, none, BUDGET)
    return row
