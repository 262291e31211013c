"""Test tools for whoever tests with network namespaces: pods, and a check for what a test leaves.

pytest finds the fixtures ``netns``, ``pod_pair`` and ``leak_check`` by itself (plugin.py); the
names below are the same tools without pytest. docs/testing.md describes both. The names load on
first use: pytest imports this package in every run of everybody who has pyztun installed.
"""

from __future__ import annotations

from pyztun import _load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.testing.leaks import LeakCheck, Leaked
    from pyztun.testing.pins import NetnsHeldWarning
    from pyztun.testing.pods import Pod, PodPair, pod_pair
    from pyztun.testing.userns import why_no_netns

_HOME = {
    "LeakCheck": "leaks",
    "Leaked": "leaks",
    "NetnsHeldWarning": "pins",
    "Pod": "pods",
    "PodPair": "pods",
    "pod_pair": "pods",
    "why_no_netns": "userns",
}

__all__ = [
    "LeakCheck",
    "Leaked",
    "NetnsHeldWarning",
    "Pod",
    "PodPair",
    "pod_pair",
    "why_no_netns",
]


if not TYPE_CHECKING:  # a checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        return _load(__name__, _HOME, name)


def __dir__() -> list[str]:
    return __all__
