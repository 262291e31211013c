"""Hand: goes into a pod, does one thing there and comes home.

The netns of the agent and the initial one are never entered: rules there would cut the machine off.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyztun import native
from pyztun.cni.capture import nft
from pyztun.cni.capture.inpod import InPod
from pyztun.cni.capture.watch import Watch
from pyztun.errors import NetnsError, SyscallError
from pyztun.netns import NetNs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeVar

    from pyztun.cni.capture.inpod import Outcome
    from pyztun.fds import OwnedFd

    T = TypeVar("T")

LOST: Final = 70
"""Exit code of a process that could not come home."""

INITIAL: Final = 0xEFFFFFF9
"""The inode of the initial netns since Linux 6.18; those of all others begin higher, always."""


class Hand:
    """What podside does in pods. Of one thread, whose home is where it was made. SyscallError."""

    def __init__(self) -> None:
        self._home = native.home()
        self._inpod: InPod | None = None
        try:
            native.prove_home(self._home.fileno())
            self._never = _initial()
            self._never[native.inspect(self._home.fileno(), "home")[1]] = "the netns of the agent"
        except BaseException:
            self._home.close()
            raise

    def identity(self, netns: OwnedFd) -> int:
        """The inode of a netns that may be entered. NotANetns, NetnsError."""
        _, inode, _ = native.inspect(netns.fileno(), "the netns of the request")
        if inode in self._never:
            raise NetnsError(errno.EINVAL, f"that is {self._never[inode]}, and no pod")
        return inode

    def watch(self, netns: OwnedFd) -> Watch:
        """Starts to watch a pod; the caller closes it."""
        return self._visit(netns, Watch)

    def put(self, netns: OwnedFd, known: int | None) -> Outcome:
        """InPod.put() there."""
        inpod = self._get_inpod()
        return self._visit(netns, lambda: inpod.put(known))

    def remove(self, netns: OwnedFd) -> tuple[str, ...]:
        """InPod.remove() there."""
        inpod = self._get_inpod()
        return self._visit(netns, inpod.remove)

    def _get_inpod(self) -> InPod:
        """Tried again each time until there is a library: an agent that captures nothing needs
        none."""
        if self._inpod is None:
            inpod = InPod(nft.find())
            with native.create_netns() as fresh:
                self._visit(fresh, inpod.learn)
            self._inpod = inpod
        return self._inpod

    def _visit(self, netns: OwnedFd, work: Callable[[], T]) -> T:
        self.identity(netns)
        native.move(netns.fileno(), "pod")
        try:
            return work()
        finally:
            self._come_home()

    def _come_home(self) -> None:
        """No line of ours may run on in a pod by mistake; nothing of ours is lost with us."""
        try:
            native.move(self._home.fileno(), "home")
        except BaseException as error:
            os.write(2, f"podside: cannot come home ({error}), ending\n".encode())
            os._exit(LOST)

    def __enter__(self) -> Hand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._home.close()


def _initial() -> dict[int, str]:
    known = {INITIAL: "the initial netns"}
    try:
        with NetNs.from_pid(1) as initial:
            known[initial.inode] = "the initial netns"
    except SyscallError:  # /proc hides process 1 from us
        pass
    return known
