"""`pyztun-cni agent` that kills itself (SIGKILL) at one step: agent_dies.py add:STEP|del:STEP ...

Or that runs a command of a shell when it has looked at its registry: load:COMMAND.

The program is the real one; around the function that a step ends or begins with there is a trap.

opened        the netns is open, nothing is on disk
before-store  just before the change goes to disk
stored        the change is on disk, no ztunnel has heard of it
offered       just before the request goes to ztunnel
sent          the request has gone out
answered      the answer has come, nothing is noted yet
acknowledged  all is done, the caller has not been told

With rules in the pod there are, of an add, in between:

asked         podside has been asked for the rules, and answers or not
ruled         the rules are in place, and that they are is on disk

and of a del:

freeing       podside has been asked to remove the rules
freed         they are removed, the row is there
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from pyztun.channel import Channel
from pyztun.cni.agent import service
from pyztun.cni.agent.core import Core
from pyztun.cni.agent.lifecycle import Lifecycle
from pyztun.cni.agent.opening import Opener
from pyztun.cni.agent.registry import Registry
from pyztun.cni.agent.store import Store
from pyztun.protocol import zds

FIRST_BYTE = {"add": 0x0A, "del": 0x12}
DO = {"add": b'"capture"', "del": b'"release"'}
REQUESTS = {"add": zds.Add, "del": zds.Del}
BEFORE, AFTER = "before", "after"


def trap(owner: type, name: str, when: str, applies: Callable[..., bool]) -> None:
    """Has the process die before or after a call of ``owner.name`` to which it applies."""
    real = getattr(owner, name)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(real)
    def plain(*args: Any) -> Any:
        if when == BEFORE and applies(*args):
            die()
        result = real(*args)
        if when == AFTER and applies(*args):
            die()
        return result

    @functools.wraps(real)
    async def awaited(*args: Any) -> Any:
        result = await real(*args)
        die()
        return result

    setattr(owner, name, awaited if name in ("add", "delete") else plain)


def arm(action: str, step: str) -> None:
    """Sets the trap of one step."""
    stored = "put" if action == "add" else "remove"
    requests = {"add": "add", "del": "delete"}[action]

    def is_ours(_channel: Channel, data: bytes, *_: object) -> bool:
        return data[0] == FIRST_BYTE[action]

    def is_request(_channel: Channel, data: bytes, *_: object) -> bool:
        return DO[action] in data

    def is_answer(_life: Lifecycle, _ztunnel: object, answer: Any) -> bool:
        return isinstance(answer.request, REQUESTS[action])

    traps: dict[str, tuple[type, str, str, Callable[..., bool]]] = {
        "opened": (Opener, "open_wanted", AFTER, lambda *_: True),
        "before-store": (Store, stored, BEFORE, lambda _store, what: bool(what)),
        "stored": (Store, stored, AFTER, lambda _store, what: bool(what)),
        "offered": (Channel, "send", BEFORE, is_ours),
        "sent": (Channel, "send", AFTER, is_ours),
        "answered": (Lifecycle, "answered", BEFORE, is_answer),
        "acknowledged": (Core, requests, AFTER, lambda *_: True),
        "asked": (Channel, "send", AFTER, is_request),
        "ruled": (Registry, "ruled", AFTER, lambda *_: True),
        "freeing": (Channel, "send", AFTER, is_request),
        "freed": (Registry, "remove", BEFORE, lambda *_: True),
    }
    trap(*traps[step])


def run_behind_load(command: str) -> None:
    """Has a shell run the command when all of the registry has been opened."""
    real = Lifecycle._open_all

    def open_all(self: Lifecycle) -> None:
        real(self)
        subprocess.run(["sh", "-ec", command], check=True)

    Lifecycle._open_all = open_all  # type: ignore[method-assign]


if __name__ == "__main__":
    action, _, what = sys.argv[1].partition(":")
    if action == "load":
        run_behind_load(what)
    else:
        arm(action, what)
    sys.exit(service.main(sys.argv[2:]))
