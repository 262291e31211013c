"""Test tools for whoever tests with network namespaces: pods, and a check for what a test leaves.

pytest finds the fixtures ``netns``, ``pod_pair`` and ``leak_check`` by itself (plugin.py); the
names below are the same tools without pytest. docs/testing.md describes both. The names load on
first use: pytest imports this package in every run of everybody who has pyztun installed.
"""

from __future__ import annotations

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
        """Loads a public name from the module that defines it (PEP 562)."""
        module = _HOME.get(name)
        if module is None:
            raise AttributeError(f"module 'pyztun.testing' has no attribute {name!r}")
        value = getattr(__import__(f"pyztun.testing.{module}", fromlist=[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
