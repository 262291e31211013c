"""The one-shot sender: opens each netns, passes its descriptor, waits for the answer.

On the path from start to exit nothing is imported that python has not loaded already, beside the
native module: this is a command that a CNI plugin may run for every pod.
"""

from __future__ import annotations

import errno
from time import monotonic

from pyztun.channel import Channel
from pyztun.cni.arguments import BUILT
from pyztun.cni.output import complain, tell
from pyztun.errors import PeerClosed, ProtocolError, PyztunError, SyscallError
from pyztun.netns import NetNs
from pyztun.protocol import seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.arguments import Asked

DONE, FAILED, UNCONFIRMED = 0, 1, 3


class NoReceiver(PyztunError):
    """Nobody can be reached at the socket, so no other NETNS would fare better."""


class Unanswered(Exception):
    """The request is out, and the receiver did not say what became of it."""


class HungUp(Unanswered):
    """The receiver closed the connection in place of an answer."""


class NotSent(HungUp):
    """The receiver closed the connection before the request was in it."""


class Sender:
    """One connection at a time to the receiver, replaced after an answer that did not come.

    An answer that comes late would be taken for the next request's, so a connection that owes one
    is never used again.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path, self._timeout = path, timeout
        self._channel: Channel | None = None

    def ask(self, request: bytes, netns: NetNs | None = None) -> seed.Answer:
        """Sends one request and waits for its answer; the timeout covers connecting too.

        NoReceiver, Unanswered, SyscallError, ProtocolError.
        """
        deadline = monotonic() + self._timeout
        fds = () if netns is None else (netns.fileno(),)
        fresh = self._channel is None
        try:
            return self._ask_once(request, fds, deadline)
        except HungUp:
            # An old connection may have ended behind its last answer. Requests are idempotent.
            if fresh:
                raise
        return self._ask_once(request, fds, deadline)

    def _ask_once(self, request: bytes, fds: tuple[int, ...], deadline: float) -> seed.Answer:
        channel = self._connect(deadline)
        try:
            channel.send(request, fds, _left(deadline))
        except SyscallError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                self.close()
                raise
            # Closed before it read anything, it may still have said why: an unwanted uid is told.
            try:
                return self.answer(deadline)
            except HungUp:
                raise NotSent("the receiver closed the connection") from None
        return self.answer(deadline)

    def _connect(self, deadline: float) -> Channel:
        if self._channel is None:
            try:
                self._channel = Channel.connect(self._path, timeout=_left(deadline))
            except SyscallError as error:
                text = str(error)
                if error.errno == errno.ENOENT and "/" not in self._path:
                    text += f"; commands are {', '.join(BUILT)}"
                raise NoReceiver(text) from error
        return self._channel

    def answer(self, deadline: float) -> seed.Answer:
        """Waits for one more answer line until the moment ``deadline``."""
        try:
            line = self._connect(deadline).receive_line(seed.MAX_LINE, _left(deadline))
            return seed.parse(line)
        except PeerClosed as error:
            self.close()
            raise HungUp("the receiver closed the connection") from error
        except SyscallError as error:
            self.close()
            if error.errno == errno.ETIMEDOUT:
                raise Unanswered(f"no answer in {self._timeout:g} s") from error
            raise

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _left(deadline: float) -> float:
    return max(0.0, deadline - monotonic())


def run(asked: Asked) -> int:
    """Does what the command line asks; returns the exit status."""
    sender = Sender(asked.socket, asked.timeout)
    try:
        if asked.action == "list":
            results = [_list(sender, asked)]
        else:
            results = [_one(sender, asked, reference) for reference in asked.references]
    except PyztunError as error:
        return _fail(str(error))
    finally:
        sender.close()
    return next((status for status in (FAILED, UNCONFIRMED) if status in results), DONE)


def _one(sender: Sender, asked: Asked, reference: str) -> int:
    try:
        if asked.action == "release" and reference.startswith("cookie:"):
            answer = sender.ask(seed.release_cookie(int(reference.removeprefix("cookie:"))))
        else:
            with NetNs.open(reference) as netns:
                if asked.verbose:
                    complain(f"{reference}: sending fd {netns.fileno()}")
                request = seed.RELEASE if asked.action == "release" else seed.TAKE
                answer = sender.ask(request, netns)
    except NotSent as error:
        return _fail(f"{reference}: not sent: {error}")
    except Unanswered as error:
        text = f"sent, not confirmed: {reference}: {error}"
        if asked.require_ready:
            complain(text)
            return UNCONFIRMED
        tell(text)
        return DONE
    except ProtocolError as error:
        sender.close()
        return _fail(f"{reference}: {error}")
    except SyscallError as error:
        text = str(error)
        return _fail(text if reference in text else f"{reference}: {text}")
    return _tell(answer, asked, reference)


def _tell(answer: seed.Answer, asked: Asked, reference: str) -> int:
    if answer.kind == seed.ERROR:
        return _fail(f"{reference}: refused: {answer.reason}")
    expected = seed.RELEASED if asked.action == "release" else seed.READY
    if answer.kind != expected:
        return _fail(f"{reference}: the receiver answered {answer.kind!r} instead of {expected!r}")
    if asked.verbose:
        words = " ".join((*answer.addresses, f"netns={answer.cookie}"))
        complain(f"{reference}: {answer.kind} {words}")
    if asked.action == "release":
        tell(f"released netns={answer.cookie}")
    else:
        tell("listeners ready")
    return DONE


def _list(sender: Sender, asked: Asked) -> int:
    try:
        answer = sender.ask(seed.LIST)
        told = 0
        while answer.kind == seed.HELD:
            if (told := told + 1) > seed.MAX_HELD:
                return _fail(
                    f"--list: the receiver did not come to an end in {seed.MAX_HELD} lines"
                )
            tell(" ".join((f"netns={answer.cookie}", *answer.addresses)))
            answer = sender.answer(monotonic() + asked.timeout)
    except Unanswered as error:
        return _fail(f"--list: {error}")
    if answer.kind == seed.ERROR:
        return _fail(f"--list: refused: {answer.reason}")
    if answer.kind != seed.END:
        return _fail(f"--list: the receiver answered {answer.kind!r}")
    return DONE


def _fail(reason: str) -> int:
    complain(reason)
    return FAILED
