"""`pyztun-cni agent` whose podside kills itself at a step of a capture: failclosed_dies.py
FILE OPTIONS...

Where FILE is there when podside begins to put the capture into a pod, its content is the step after
which it dies, and the file is removed: the next podside goes on.

watched     its notifications are asked for, nothing is written
compared    what is there was listed
written     the rules are in force, but for the chain that comes last
ipv4-route, ipv4-rule, ipv6-route, ipv6-rule    that one is written
flushed     conntrack is flushed
settled     the chain that comes last is there
proven      the rules were listed again
answered    the agent has its answer
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

PODSIDE = "--podside"
STEPS = (
    "watched",
    "compared",
    "written",
    "ipv4-route",
    "ipv4-rule",
    "ipv6-route",
    "ipv6-rule",
    "flushed",
    "settled",
    "proven",
    "answered",
)

armed: list[str] = []
"""The step, once it is known."""
passed: set[str] = set()


def reached(step: str) -> None:
    """Dies if this is the step."""
    passed.add(step)
    if step in armed:
        os.kill(os.getpid(), signal.SIGKILL)


def behind(owner: Any, name: str, step: str) -> None:
    """A call of owner.name is a step."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def call(*args: Any, **named: Any) -> Any:
        result = real(*args, **named)
        reached(step)
        return result

    setattr(owner, name, call)


def arm(path: str) -> None:
    """Sets all traps; that of the file goes off."""
    from pyztun.channel import Channel
    from pyztun.cni.capture import inpod, nfnetlink, routes, rules
    from pyztun.cni.capture.hand import Hand
    from pyztun.cni.capture.nft import Library, Program

    try:
        with open(path) as file:
            armed.append(file.read().strip())
        os.unlink(path)
    except FileNotFoundError:
        return
    behind(Hand, "watch", "watched")
    behind(inpod.InPod, "_look", "compared")
    behind(inpod.InPod, "_write", "written")
    behind(nfnetlink, "flush_conntrack", "flushed")
    behind(inpod.InPod, "_proven", "proven")
    behind(Channel, "send", "answered")
    for owner in (Library, Program):
        settle(owner, rules.SETTLE)
    route_steps(routes)


def settle(owner: Any, text: str) -> None:
    """The last chain; that of the netns in which podside learns what is expected is none."""
    real = owner.run

    def run(self: Any, what: str) -> str:
        result: str = real(self, what)
        if what == text and "flushed" in passed:
            reached("settled")
        return result

    owner.run = run


def route_steps(routes: Any) -> None:
    """Each write of a route or a rule."""
    real: Callable[[], Any] = routes._routes

    def made() -> Any:
        ip = real()
        for kind in ("route", "rule"):
            setattr(ip, kind, stepping(getattr(ip, kind), kind))
        return ip

    routes._routes = made


def stepping(real: Callable[..., Any], kind: str) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        result = real(*args, **named)
        reached(f"ipv{4 if named['family'] == 2 else 6}-{kind}")
        return result

    return call


def main(argv: list[str]) -> int:
    """The agent, or its podside."""
    if argv[1] == PODSIDE:
        from pyztun.cni.capture import podside

        real = podside.Podside._answered

        def answered(*args: Any) -> Any:
            if not armed:
                arm(argv[2])
            return real(*args)

        podside.Podside._answered = answered  # type: ignore[assignment,method-assign]
        return podside.main(argv[2:])
    from pyztun.cni.agent import podside_process, service

    podside_process.COMMAND = (sys.executable, __file__, PODSIDE, argv[1])
    return service.main(argv[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
