"""podside: the process that may enter pods. `python -m pyztun.cni.capture.podside FD`

The agent starts it with its end of a seqpacket socketpair and tells it what to do (wire.py). It has
one thread, which is in a pod only while it works there; one that cannot come home ends itself. It
ends when the agent does, and leaves every rule where it is: the next one finds them right.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from time import monotonic
from typing import Final

from pyztun.channel import Channel
from pyztun.cni.capture import wire
from pyztun.cni.capture.hand import Hand
from pyztun.cni.capture.watch import Watch
from pyztun.errors import Broken, ProtocolError, PyztunError, Reset, TimedOut
from pyztun.fds import OwnedFd
from pyztun.service.backoff import Backoff
from pyztun.service.fdlimit import raise_fd_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.capture.inpod import Outcome

PAUSE, BURST = 0.25, 8
"""Seconds from one look at a pod to the next, and looks that need not wait. One that changes its
rules all the time costs four looks a second; others are seen at once. Our own write costs one."""
PRICE: Final = 8
"""Seconds that a pod waits for each second that a look at it takes: thousands of rules of its own
are its own to wait for."""
FIRST_RETRY, LAST_RETRY = 0.25, 10.0
AT_ONCE: Final = 8
"""Looks between two requests."""
FDS_A_POD, FDS_OURS = 3, 64

ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT


class Pod:
    """A pod that is watched. Owns its netns and its watch.

    :ivar generation: one of which the rules are known to be right; None: none is.
    """

    def __init__(self, key: int, netns: OwnedFd, inode: int, watch: Watch) -> None:
        self.key, self.netns, self.inode, self.watch = key, netns, inode, watch
        self.generation: int | None = None
        self.trouble = ""
        self.captured = False
        self.paid_until = 0.0
        self.backoff = Backoff(FIRST_RETRY, LAST_RETRY)

    def next_look(self) -> float:
        """When this pod may be looked at again."""
        return self.paid_until - BURST * PAUSE

    def pay(self, seconds: float) -> None:
        """It is looked at because of something that it did."""
        self.paid_until = max(self.paid_until, monotonic()) + seconds

    def close(self) -> None:
        """Lets go of the netns: whatever is open in it pins it."""
        self.watch.close()
        self.netns.close()


class Podside:
    """The loop.

    :param channel: to the agent; stays the caller's.
    :param max_pods: how many can be watched at a time.
    """

    def __init__(self, channel: Channel, hand: Hand, max_pods: int) -> None:
        self._channel, self._hand, self._max_pods = channel, hand, max_pods
        self._pods: dict[int, Pod] = {}
        self._by_fd: dict[int, Pod] = {}
        self._due: dict[int, float] = {}  # key: when to look
        self._answer: wire.Reply | None = None  # what the agent has not taken yet
        self._notices: dict[int, wire.Reply] = {}  # likewise, the newest of each pod
        self._epoll = select.epoll()
        self._epoll.register(channel.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serves until the agent closes its end."""
        try:
            while self._turn():
                pass
        except (Broken, Reset):
            pass

    def close(self) -> None:
        """Closes everything; the rules stay."""
        for key in list(self._pods):
            self._forget(key)
        self._epoll.close()

    def _turn(self) -> bool:
        """Waits and does what there is to do; whether the agent is still there."""
        for fd, _ in self._epoll.poll(self._seconds_to_wait()):
            pod = self._by_fd.get(fd)
            if pod is not None:
                self._look_at(pod, pod.next_look())
        self._send_what_waits()
        if self._answer is None and not self._serve_one():
            return False
        self._look_at_those_due()
        self._send_what_waits()
        return True

    def _seconds_to_wait(self) -> float | None:
        return max(0.0, min(self._due.values()) - monotonic()) if self._due else None

    # ---- the agent -------------------------------------------------------------------------------

    def _serve_one(self) -> bool:
        """Serves a request if there is one; whether the agent is still there."""
        try:
            message, fds = self._channel.receive(wire.MAX_MESSAGE, max_fds=1, timeout=0)
        except TimedOut:
            return True
        if not message:
            return False
        netns = fds[0] if fds else None
        try:
            request = wire.decode_request(message)
            if len(fds) != wire.FDS[request.do]:
                raise ProtocolError(f"podside: {len(fds)} descriptors with {request.do}")
            self._answer = self._answered(request, netns)
        finally:
            if netns is not None:
                netns.close()
        return True

    def _answered(self, request: wire.Request, netns: OwnedFd | None) -> wire.Reply:
        try:
            if netns is None:
                self._forget(request.key)
                return wire.Done(request.id, (), flushed=False, without=())
            if request.do == wire.RELEASE:
                self._forget(request.key)
                removed = self._hand.remove(netns)
                return wire.Done(request.id, removed, flushed=True, without=())
            return self._capture(request, netns)
        except Exception as error:  # also what pyroute2 comes up with: no pod ends us
            return wire.Failed(request.id, _said_by(error))

    def _send_what_waits(self) -> None:
        """Sends without waiting: an agent that does not read must not delay a repair."""
        try:
            if self._answer is not None:
                self._send(self._answer)
                self._answer = None
            for key in list(self._notices):
                self._send(self._notices[key])
                del self._notices[key]
        except TimedOut:
            pass
        wanted = select.EPOLLIN if self._answer is None else 0
        if self._answer is not None or self._notices:
            wanted |= select.EPOLLOUT
        self._epoll.modify(self._channel.fileno(), wanted)

    def _send(self, reply: wire.Reply) -> None:
        self._channel.send(wire.encode_reply(reply), timeout=0)

    # ---- pods ------------------------------------------------------------------------------------

    def _capture(self, request: wire.Request, netns: OwnedFd) -> wire.Reply:
        inode = self._hand.identity(netns)
        pod = self._pods.get(request.key)
        if pod is None or pod.inode != inode:
            self._forget(request.key)
            pod = self._begin(request.key, netns, inode)
        try:
            outcome = self._put(pod)
        except BaseException:
            if not pod.captured:  # never captured: nothing to watch
                self._forget(pod.key)
            else:
                self._look_at(pod, monotonic() + pod.backoff.next())
            raise
        return wire.Done(request.id, outcome.written, outcome.flushed, outcome.without)

    def _begin(self, key: int, netns: OwnedFd, inode: int) -> Pod:
        """Starts to watch: before anything is compared, so that no change falls in between."""
        if len(self._pods) >= self._max_pods:
            raise PyztunError(f"podside: {self._max_pods} pods, as many as descriptors allow")
        watch = self._hand.watch(netns)
        pod = Pod(key, OwnedFd(netns.detach()), inode, watch)
        self._pods[key] = pod
        try:
            for fd in watch.filenos():
                self._by_fd[fd] = pod
                self._epoll.register(fd, ONCE)
        except BaseException:
            self._forget(key)
            raise
        return pod

    def _forget(self, key: int) -> None:
        pod = self._pods.pop(key, None)
        if pod is None:
            return
        for fd in pod.watch.filenos():
            self._by_fd.pop(fd, None)
        pod.close()
        self._due.pop(key, None)
        self._notices.pop(key, None)

    def _put(self, pod: Pod) -> Outcome:
        """Looks at a pod and writes what is missing; what changes after the drain fires again."""
        self._due.pop(pod.key, None)
        pod.watch.drain()
        for fd in pod.watch.filenos():
            self._epoll.modify(fd, ONCE)
        outcome = self._hand.put(pod.netns, pod.generation)
        pod.generation = outcome.generation
        if outcome.trouble:
            self._be_in_trouble(pod, outcome.trouble)
        else:
            pod.backoff.reset()
            if pod.trouble:
                self._tell_repaired(pod, outcome)
        pod.captured, pod.trouble = True, outcome.trouble
        return outcome

    def _be_in_trouble(self, pod: Pod, trouble: str) -> None:
        """Tells it if it is new, and tries again later."""
        self._look_at(pod, monotonic() + pod.backoff.next())
        if trouble != pod.trouble:
            self._notices[pod.key] = wire.Trouble(pod.key, trouble)
        pod.trouble = trouble

    def _tell_repaired(self, pod: Pod, outcome: Outcome) -> None:
        self._notices[pod.key] = wire.Repaired(pod.key, outcome.written, outcome.flushed)

    def _look_at(self, pod: Pod, when: float) -> None:
        self._due[pod.key] = min(when, self._due.get(pod.key, when))

    def _look_at_those_due(self) -> None:
        now = monotonic()
        ready = sorted((when, key) for key, when in self._due.items() if when <= now)
        for _, key in ready[:AT_ONCE]:
            self._look(self._pods[key])

    def _look(self, pod: Pod) -> None:
        began = monotonic()
        pod.pay(PAUSE)
        try:
            outcome = self._put(pod)
        except Exception as error:
            pod.generation = None
            self._be_in_trouble(pod, _said_by(error))
            return
        finally:
            pod.pay(PRICE * (monotonic() - began))
        if outcome.written and not outcome.trouble:
            self._tell_repaired(pod, outcome)


def _said_by(error: Exception) -> str:
    """What was meant to be said, or else what kind of bug it is."""
    return str(error) if isinstance(error, PyztunError) else f"{type(error).__name__}: {error}"


def main(argv: list[str]) -> int:
    """Serves the agent at the other end of descriptor argv[1]."""
    # They go to the whole terminal; the agent ends us when it has no more use for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    max_pods = (raise_fd_limit() - FDS_OURS) // FDS_A_POD
    try:
        fd = OwnedFd(int(argv[1]))
        os.set_inheritable(fd.fileno(), False)
        with Channel(fd, "agent") as channel, Hand() as hand:
            podside = Podside(channel, hand, max_pods)
            try:
                podside.run()
            finally:
                podside.close()
    except (PyztunError, OSError, ValueError, IndexError) as error:
        sys.stderr.write(f"podside: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
