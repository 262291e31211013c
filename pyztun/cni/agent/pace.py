"""Pace: how often something may happen. Pure.

Istio's agent accepts 5 connections a second (pkg/nodeagent/ztunnelserver.go), since each costs a
snapshot: a ztunnel that crashes as soon as it is told something would keep the agent busy.
"""

from __future__ import annotations


class Pace:
    """A bucket that holds ``burst`` tokens and gains ``rate`` of them a second.

    :param now: seconds of any clock that does not jump.
    """

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate, self._burst = rate, float(burst)
        self._tokens, self._at = float(burst), now

    def wait(self, now: float) -> float:
        """Seconds until there is a token; 0 if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._tokens) / self._rate)

    def take(self) -> None:
        """Takes one, after wait() has returned 0."""
        self._tokens -= 1
