"""InPod: puts the capture into the pod where the calling thread stands, or takes it away.

Putting is comparing first: what is as it should be is not written again, so that whoever asks twice
cuts no connection.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from pyztun.cni.capture import nfnetlink, routes, rules
from pyztun.cni.capture.nft import NftError
from pyztun.cni.capture.wire import RULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.capture.nft import Nft


class Outcome(NamedTuple):
    """What put() found and did.

    :ivar written: words of wire.Done.
    :ivar trouble: why it is not whole; "" if it is.
    :ivar generation: the one of which the rules are known to be right; None: not known.
    """

    written: tuple[str, ...]
    flushed: bool
    without: tuple[str, ...]
    trouble: str
    generation: int | None


class InPod:
    """Everything is done in the netns of the calling thread, which stays where it is."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._expected = ""

    def learn(self) -> None:
        """Lists what our rules look like, in a fresh netns that nobody else knows.

        How nft prints them differs by its version. What it lists right after a write to a pod may
        have been changed by then.
        """
        self._nft.run(rules.CREATE)
        self._nft.run(rules.SETTLE)
        self._expected = self._nft.run(rules.LIST)

    def put(self, known: int | None) -> Outcome:
        """Puts the capture there, or what of it is missing.

        :param known: a generation of which the rules were right, if one is known.
        :raises NftError, SyscallError: of the rules. Of the routes `trouble` tells: the pod is
            closed then, and nothing passes.
        """
        right, generation = self._look(known)
        if not right:
            self._write()
        found = routes.put()
        if not right:
            nfnetlink.flush_conntrack()
            self._nft.run(rules.SETTLE)
            generation = self._proven()
        else:
            for family in found.written:
                nfnetlink.flush_conntrack(family)
        written = ([] if right else [RULES]) + [routes.NAMES[family] for family in found.written]
        return Outcome(
            written=tuple(written),
            flushed=bool(written),
            without=tuple(routes.NAMES[family] for family in found.without),
            trouble=found.trouble,
            generation=generation,
        )

    def remove(self) -> tuple[str, ...]:
        """Takes all of it away, and flushes conntrack. Returns what was there.

        :raises NftError, SyscallError:
        """
        there = self._listed() is not None
        self._nft.run(rules.REMOVE)
        removed = routes.remove()
        nfnetlink.flush_conntrack()
        return (*([RULES] if there else []), *(routes.NAMES[family] for family in removed))

    def _look(self, known: int | None) -> tuple[bool, int | None]:
        """Whether the rules are right, and of which generation that is sure."""
        before = nfnetlink.generation()
        if before == known:
            return True, known
        if self._listed() != self._expected:
            return False, None
        return True, before if nfnetlink.generation() == before else None

    def _proven(self) -> int | None:
        right, generation = self._look(None)
        if not right:
            raise NftError("nftables lists other rules than those just written")
        return generation

    def _write(self) -> None:
        """Writes all but the end. Without a table to delete this takes a quarter of the time."""
        if self._listed() is None:
            try:
                self._nft.run(rules.CREATE)
            except NftError:  # somebody was faster, or REPLACE tells what is wrong
                pass
            else:
                return
        self._nft.run(rules.REPLACE)

    def _listed(self) -> str | None:
        """Our table as nft lists it; None if it does not, mostly since there is none."""
        try:
            text = self._nft.run(rules.LIST)
        except NftError:
            return None
        return _with_the_name_of_lo(text)


def _with_the_name_of_lo(text: str) -> str:
    """The kernel compares the index of lo; nft prints the name that it has in this pod."""
    name = socket.if_indextoname(rules.LO)
    return text if name == "lo" else text.replace(f'"{name}"', '"lo"')
