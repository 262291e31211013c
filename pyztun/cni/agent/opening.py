"""From a reference to a netns that may be a workload.

Two ways lead here. A request brings a reference and, mostly, the caller's own descriptor: what is
kept is the descriptor, once it is proven that our reference means the same netns. After a restart,
or when a path has changed, there is the reference alone.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from pyztun.cni.agent import references, requests
from pyztun.cni.agent.requests import Refusal
from pyztun.errors import NetnsGone, NotANetns, SyscallError
from pyztun.netns import NetNs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.agent.requests import Wanted

NO_FDS = (errno.EMFILE, errno.ENFILE)
DESCRIPTOR = re.compile(r"/proc/([1-9][0-9]{0,9})/fd/(0|[1-9][0-9]{0,9})", re.ASCII)


class Opened(NamedTuple):
    """A netns that may be served.

    :ivar netns: owned by whoever has this.
    :ivar cookie: None where it cannot be told: see _cookie_of().
    :ivar process: see Workload.
    """

    netns: NetNs
    cookie: int | None
    process: str | None


class Opener:
    """Opens netns and refuses those that are no workloads: the agent's own, and the initial one.

    :param home: the agent's netns.
    """

    def __init__(self, home: NetNs) -> None:
        self._never: dict[int, tuple[str, str]] = {}
        try:
            with NetNs.from_pid(1) as initial:
                self._never[initial.inode] = requests.INITIAL_NETNS, "that is the initial netns"
        except SyscallError:  # /proc hides process 1 from us
            pass
        self._never[home.inode] = requests.HOME_NETNS, "that is the netns of the agent itself"

    def open_wanted(self, wanted: Wanted, reference: str) -> Opened:
        """Opens what a request asks for. Refusal.

        :param reference: of the request, in its normal form.
        """
        descriptor = None if wanted.descriptor is None else _of_caller(wanted)
        try:
            held = self._open_pair(reference, descriptor, wanted.netns)
        except SyscallError as error:
            raise _refusal(error) from error
        return self._checked(held, reference)

    def open_again(self, reference: str) -> Opened:
        """Opens what the reference means now.

        :raises Refusal: it is our own netns, or the initial one.
        :raises SyscallError: NetnsGone, NotANetns: it means none. Others: not now.
        """
        path = references.path_of(reference)
        if path is None:
            raise NetnsGone(errno.EBADF, f"{reference}: means nothing without the caller")
        return self._checked(NetNs.from_path(path, reference), reference, refusing=False)

    @staticmethod
    def _open_pair(reference: str, descriptor: str | None, written: str) -> NetNs:
        """The descriptor's netns, or the reference's where there is no descriptor."""
        path = references.path_of(reference)
        if path is None:
            if descriptor is None:
                raise Refusal(
                    requests.BAD_REQUEST, f"{written}: a descriptor of yours needs `descriptor`"
                )
            return NetNs.from_path(descriptor, written)
        named = NetNs.from_path(path, written)
        if descriptor is None:
            return named
        with named:
            held = NetNs.from_path(descriptor, written)
            if held.is_same(named):
                return held
        held.close()
        raise Refusal(
            requests.BAD_REQUEST,
            f"{written} means another netns to the agent than to you: replaced just now, "
            "or you are in another mount or pid namespace",
        )

    def _refuse_never_served(self, held: NetNs) -> None:
        never = self._never.get(held.inode)
        if never is not None:
            code, why = never
            raise Refusal(code, f"{held.reference}: {why}, and no workload")

    def _checked(self, held: NetNs, reference: str, refusing: bool = True) -> Opened:
        """Takes ownership of HELD, also when this raises."""
        try:
            self._refuse_never_served(held)
            path = references.path_of(reference)
            pid = None if path is None else references.process_of(path)
            process = None if pid is None else references.start_of(pid)
            return Opened(held, _cookie_of(held), process)
        except SyscallError as error:
            held.close()
            if refusing:
                raise _refusal(error) from error
            raise
        except BaseException:
            held.close()
            raise


def _cookie_of(netns: NetNs) -> int | None:
    """Since Linux 6.18 the kernel tells it of a descriptor. Before, it tells it of a socket alone.

    So there this thread makes one in the netns, for which it needs CAP_SYS_ADMIN; without that the
    inode has to do, which is the netns' own for as long as we hold it.
    """
    try:
        return netns.cookie
    except SyscallError:
        return None


def _of_caller(wanted: Wanted) -> str:
    """The caller's descriptor. That of another process would be one that he cannot open himself."""
    match = DESCRIPTOR.fullmatch(wanted.descriptor or "")
    if match is None:
        raise Refusal(requests.BAD_REQUEST, "descriptor is not /proc/PID/fd/N")
    if int(match[1]) != wanted.peer_pid:
        raise Refusal(
            requests.BAD_REQUEST,
            f"descriptor is of process {match[1]}, and you are process {wanted.peer_pid} here",
        )
    return match[0]


def _refusal(error: SyscallError) -> Refusal:
    reason = str(error)
    if isinstance(error, NotANetns):
        return Refusal(requests.NOT_A_NETNS, reason)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Refusal(requests.NOT_PERMITTED, reason)
    if error.errno in NO_FDS:
        return Refusal(requests.LIMIT, reason)
    return Refusal(requests.NO_SUCH_NETNS, reason)
