"""A workload: what was asked for, the netns that we hold for it, and how it stands."""

from __future__ import annotations

import os
from time import time
from typing import NamedTuple

from pyztun.cni.agent.requests import REDIRECT
from pyztun.protocol.zds_agent import Offer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyztun.netns import NetNs
    from pyztun.protocol.zds import WorkloadInfo

READY, PENDING, DEGRADED = "ready", "pending", "degraded"


class Spec(NamedTuple):
    """What was asked for, apart from the uid.

    :ivar reference: an absolute path, ``pid:N`` or ``fd:N``.
    """

    reference: str
    info: WorkloadInfo
    capture: str
    labels: Mapping[str, str]


class Workload:
    """One workload. Changed by the registry alone.

    :ivar boot_id: the boot in which ``cookie`` means something.
    :ivar cookie: of its netns, or of the last one that it had; None if that is not known.
    :ivar netns: held open by us, else None.
    :ivar trouble: what is wrong with its reference; empty if nothing is.
    :ivar is_kept: its path is there and cannot be opened now, so ztunnel is asked to keep it.
    :ivar process: when the process of a ``pid:N`` started, to know it from a later one of that pid.
    :ivar ruled: the ``known_as`` of the netns in which rules of ours were put in place.
    :ivar rules_trouble: why they cannot be put in place, or repaired; empty if nothing is wrong.
    :ivar without: parts of them that this pod cannot have now.
    :ivar repairs: how often they were found changed and put back, since the agent began.
    :ivar was_offered: ztunnels may have been offered it since they were last told to stop it.
    :ivar state: ready, pending or degraded; ``reason`` says why, ``since`` (seconds of the epoch)
        when the state began.
    """

    __slots__ = (
        "boot_id",
        "cookie",
        "is_kept",
        "netns",
        "offer",
        "process",
        "reason",
        "repairs",
        "ruled",
        "rules_trouble",
        "since",
        "spec",
        "state",
        "trouble",
        "uid",
        "was_offered",
        "without",
    )

    def __init__(self, uid: str, spec: Spec) -> None:
        self.uid, self.spec = uid, spec
        self.boot_id = ""
        self.cookie: int | None = None
        self.netns: NetNs | None = None
        self.trouble = ""
        self.is_kept = False
        self.process: str | None = None
        self.ruled: int | None = None
        self.rules_trouble = ""
        self.without: tuple[str, ...] = ()
        self.repairs = 0
        self.was_offered = False
        self.state, self.reason, self.since = PENDING, "", time()
        self.offer: Offer | None = None

    @property
    def info(self) -> WorkloadInfo:
        """What it is called in the mesh."""
        return self.spec.info

    @property
    def reference(self) -> str:
        """What names its netns."""
        return self.spec.reference

    @property
    def capture(self) -> str:
        """How traffic is captured."""
        return self.spec.capture

    @property
    def is_captured(self) -> bool:
        """Whether it is to have rules in its netns."""
        return self.spec.capture == REDIRECT

    @property
    def labels(self) -> Mapping[str, str]:
        """The user's own."""
        return self.spec.labels

    @property
    def inode(self) -> int | None:
        """Of the netns that we hold."""
        return None if self.netns is None else self.netns.inode

    @property
    def known_as(self) -> int | None:
        """What tells its netns from every other one: the cookie; else, while held, the inode."""
        return self.inode if self.cookie is None else self.cookie

    @property
    def awaits_rules(self) -> bool:
        """Whether its netns is held and has not had our rules yet: it must not be offered."""
        return self.netns is not None and self.is_captured and self.ruled != self.known_as

    @property
    def has_rules(self) -> bool:
        """Whether our rules are in its netns, which is held, and nothing is known to be wrong."""
        captured = self.netns is not None and self.is_captured
        return captured and self.ruled == self.known_as and not self.rules_trouble

    def renew_offer(self) -> None:
        """To be called after every change: what ztunnels are offered, None for nothing."""
        if self.netns is not None and not self.awaits_rules:
            self.offer = Offer(self.uid, self.known_as, self.info)
        elif self.is_kept:
            self.offer = Offer(self.uid, None, self.info)
        else:
            self.offer = None
        self.was_offered = self.was_offered or self.offer is not None

    def set_state(self, state: str, reason: str) -> bool:
        """Returns whether that is another one.

        :param reason: a peer's text, perhaps; it is made one line that UTF-8 can carry.
        """
        reason = one_line(reason)
        if (state, reason) == (self.state, self.reason):
            return False
        if state != self.state:
            self.since = time()
        self.state, self.reason = state, reason
        return True

    def shown(self) -> dict[str, object]:
        """The fields of a log line."""
        shown: dict[str, object] = {"uid": self.uid, "netns": printable(self.reference)}
        if self.cookie is not None:
            shown["cookie"] = self.cookie
        return shown


def printable(reference: str) -> str:
    """A path may contain anything but NUL; what a log line cannot, is escaped."""
    return reference if reference.isprintable() else ascii(os.fsencode(reference))[2:-1]


def one_line(text: str) -> str:
    """The text, with whatever cannot be printed as a question mark or a blank."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text).strip()
