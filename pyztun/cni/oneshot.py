"""The one-shot sender: opens each netns, passes its descriptor, waits for the answer.

On the path from start to exit nothing is imported that python has not loaded already, beside the
native module: this is a command that a CNI plugin may run for every pod.
"""

from __future__ import annotations

import errno
import sys
from time import monotonic

from pyztun.channel import Channel
from pyztun.errors import PeerClosed, ProtocolError, PyztunError, SyscallError
from pyztun.netns import NetNs
from pyztun.protocol import seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.arguments import Asked

DONE, FAILED, UNCONFIRMED = 0, 1, 3


class Unanswered(Exception):
    """The request is out, and the receiver did not say what became of it."""


class Sender:
    """One connection at a time to the receiver, replaced after an answer that did not come.

    An answer that comes late would be taken for the next request's, so a connection that owes one
    is never used again.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path, self._timeout = path, timeout
        self._channel: Channel | None = None

    def connect(self) -> Channel:
        """The connection, made if there is none. SyscallError."""
        if self._channel is None:
            self._channel = Channel.connect(self._path, timeout=self._timeout)
        return self._channel

    def ask(self, request: bytes, netns: NetNs | None = None) -> seed.Answer:
        """Sends one request and waits for its answer. Unanswered, SyscallError, ProtocolError."""
        deadline = monotonic() + self._timeout
        fds = () if netns is None else (netns.fileno(),)
        self.connect().send(request, fds, max(0.0, deadline - monotonic()))
        return self.answer(deadline)

    def answer(self, deadline: float) -> seed.Answer:
        """Waits for one more answer line until the moment ``deadline``."""
        try:
            left = max(0.0, deadline - monotonic())
            return seed.parse(self.connect().receive_line(seed.MAX_LINE, left))
        except PeerClosed as error:
            self.close()
            raise Unanswered("the receiver closed the connection") from error
        except SyscallError as error:
            self.close()
            if error.errno == errno.ETIMEDOUT:
                raise Unanswered(f"no answer in {self._timeout:g} s") from error
            raise

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def run(asked: Asked) -> int:
    """Does what the command line asks; returns the exit status."""
    sender = Sender(asked.socket, asked.timeout)
    try:
        sender.connect()
        if asked.action == "list":
            return _list(sender, asked)
        results = [_one(sender, asked, reference) for reference in asked.references]
    except PyztunError as error:
        return _say(str(error))
    except KeyboardInterrupt:
        return _say("interrupted")
    except BrokenPipeError:
        return FAILED
    finally:
        sender.close()
    return next((status for status in (FAILED, UNCONFIRMED) if status in results), DONE)


def _one(sender: Sender, asked: Asked, reference: str) -> int:
    try:
        if asked.action == "release" and reference.startswith("cookie:"):
            answer = sender.ask(seed.release_cookie(int(reference.removeprefix("cookie:"))))
        else:
            with NetNs.open(reference) as netns:
                request = seed.RELEASE if asked.action == "release" else seed.TAKE
                answer = sender.ask(request, netns)
    except Unanswered as error:
        where = sys.stderr if asked.require_ready else sys.stdout
        print(f"sent, not confirmed: {reference}: {error}", file=where, flush=True)
        return UNCONFIRMED if asked.require_ready else DONE
    except ProtocolError as error:
        sender.close()
        return _say(f"{reference}: {error}")
    except SyscallError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            sender.close()
        text = str(error)
        return _say(text if reference in text else f"{reference}: {text}")
    return _tell(answer, asked, reference)


def _tell(answer: seed.Answer, asked: Asked, reference: str) -> int:
    if answer.kind == seed.ERROR:
        return _say(f"{reference}: refused: {answer.reason}")
    expected = seed.RELEASED if asked.action == "release" else seed.READY
    if answer.kind != expected:
        return _say(f"{reference}: the receiver answered {answer.kind!r} instead of {expected!r}")
    if asked.verbose:
        words = " ".join((*answer.addresses, f"netns={answer.cookie}"))
        print(f"{reference}: {answer.kind} {words}", file=sys.stderr)
    if asked.action == "release":
        print(f"released netns={answer.cookie}", flush=True)
    else:
        print("listeners ready", flush=True)
    return DONE


def _list(sender: Sender, asked: Asked) -> int:
    try:
        answer = sender.ask(seed.LIST)
        while answer.kind == seed.HELD:
            print(f"netns={answer.cookie}", *answer.addresses)
            answer = sender.answer(monotonic() + asked.timeout)
    except Unanswered as error:
        return _say(f"--list: {error}")
    if answer.kind == seed.ERROR:
        return _say(f"--list: refused: {answer.reason}")
    if answer.kind != seed.END:
        return _say(f"--list: the receiver answered {answer.kind!r}")
    return DONE


def _say(reason: str) -> int:
    sys.stderr.write(f"pyztun-cni: {reason}\n")
    return FAILED
