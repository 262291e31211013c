"""Test tools for whoever tests with network namespaces: pods, and a check for what a test leaves.

pytest finds the fixtures ``netns``, ``pod_pair`` and ``leak_check`` by itself (plugin.py); the
names below are the same tools without pytest, and the scripted ends of ZDS. docs/testing.md
describes all of them. The names load on first use: pytest imports this package in every run of
everybody who has pyztun installed.
"""

from __future__ import annotations

from pyztun import _load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.testing.leaks import LeakCheck, Leaked
    from pyztun.testing.pins import NetnsHeldWarning
    from pyztun.testing.pods import Pod, PodPair, pod_pair
    from pyztun.testing.userns import why_no_netns
    from pyztun.testing.zds_agent import AgentConnection, Answer, ScriptedAgent
    from pyztun.testing.zds_ztunnel import AckingZtunnel, ScriptedZtunnel, ZdsRequest

_HOME = {
    "AckingZtunnel": "zds_ztunnel",
    "AgentConnection": "zds_agent",
    "Answer": "zds_agent",
    "LeakCheck": "leaks",
    "Leaked": "leaks",
    "NetnsHeldWarning": "pins",
    "Pod": "pods",
    "PodPair": "pods",
    "ScriptedAgent": "zds_agent",
    "ScriptedZtunnel": "zds_ztunnel",
    "ZdsRequest": "zds_ztunnel",
    "pod_pair": "pods",
    "why_no_netns": "userns",
}

__all__ = [
    "AckingZtunnel",
    "AgentConnection",
    "Answer",
    "LeakCheck",
    "Leaked",
    "NetnsHeldWarning",
    "Pod",
    "PodPair",
    "ScriptedAgent",
    "ScriptedZtunnel",
    "ZdsRequest",
    "pod_pair",
    "why_no_netns",
]


if not TYPE_CHECKING:  # a checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        return _load(__name__, _HOME, name)


def __dir__() -> list[str]:
    return __all__
