"""Podside as the agent sees it: the one process of ours that enters pods.

A child that is started with the first request, and again whenever it ends. It takes requests in
their order, so a few are sent ahead; the oldest one has ten seconds, else the child is killed.
Killing it harms nothing: what it does to a pod's rules is one transaction.

What was under way when it died is sent to the next one. One that has seen three of them die goes
back to whoever asked, and so does everything where three in a row have answered nothing; one that
has seen two die goes behind all others first, so that a bad netns is not in everybody's way.

Nothing here waits, but for the millisecond until the child is executed. It ends with us: its end
of the socket pair tells it.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import Protocol

from pyztun.cni.agent.podside_process import END, Process
from pyztun.cni.capture import wire
from pyztun.errors import ProtocolError, PyztunError, SyscallError
from pyztun.service.backoff import Backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.netns import NetNs
    from pyztun.service.log import Log

    NetnsOf = Callable[[], NetNs | None]
    Answer = asyncio.Future[wire.Done]
    Reply = wire.Done | wire.Failed | wire.Repaired | wire.Trouble

DEADLINE = 10.0
"""Seconds for the oldest request."""
AHEAD = 8
MAX_WAITING = 1024
"""Requests; what forgets is not counted, since there are no more of them than of workloads."""
DEATHS = 3
FIRST, LIMIT = 0.05, 5.0


class Failed(PyztunError):
    """What was asked for could not be done; the text is one line that says why."""


class Stale(PyztunError):
    """The netns is not held any more, or is to be left alone: nothing was done."""


class Events(Protocol):
    """Who wants to know. Called in the loop."""

    def reported(self, report: wire.Repaired | wire.Trouble) -> None:
        """Somebody has changed the rules of a netns that is watched."""

    def died(self) -> None:
        """Nothing is watched any more."""


class _Asked:
    """A request: see Podside.ask()."""

    __slots__ = ("deaths", "do", "future", "key", "netns", "number")

    def __init__(
        self, number: int, do: str, key: int, netns: NetnsOf | None, future: Answer
    ) -> None:
        self.number, self.do, self.key, self.netns, self.future = number, do, key, netns, future
        self.deaths = 0

    def fail(self, error: PyztunError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _look_at(answer: Answer) -> None:
    """Nobody else may be there to hear of its error: asyncio would complain of that."""
    if not answer.cancelled():
        answer.exception()


class Podside:
    """See above. All of it runs in the loop.

    :ivar restarts: how often it was started again.
    """

    def __init__(self, events: Events, log: Log) -> None:
        self._events, self._log = events, log
        self._loop = asyncio.get_running_loop()
        self._child: Process | None = None
        self._waiting: deque[_Asked] = deque()
        self._sent: deque[_Asked] = deque()
        self._count = self._starts = 0
        self._silent_lives = 0
        """How many have ended in a row without one answer."""
        self._backoff = Backoff(FIRST, LIMIT)
        self._pause: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._child is None else self._child.pid

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self._starts - 1)

    def ask(self, do: str, key: int, netns: NetnsOf) -> Answer:
        """Has something done in a netns: its answer, or Failed, or Stale.

        :param do: wire.CAPTURE or wire.RELEASE.
        :param netns: tells the netns when the request goes out, borrowed; None is Stale.
        """
        asked = self._asked(do, key, netns)
        if len(self._waiting) >= MAX_WAITING or self._is_closed:
            asked.fail(Failed("podside has too much to do"))
        else:
            self._waiting.append(asked)
            self._go_on()
        return asked.future

    def forget(self, key: int) -> None:
        """Has it let go of a netns. One that has not been started holds none."""
        if self._child is not None:
            self._waiting.append(self._asked(wire.FORGET, key, None))
            self._go_on()

    def close(self) -> None:
        """Ends it; what is in place stays. Answers that are awaited do not come."""
        self._is_closed = True
        for timer in (self._pause, self._deadline):
            if timer is not None:
                timer.cancel()
        if self._child is not None:
            self._let_go(self._child)
            self._child.process.kill()
            self._child.end()
            self._child = None
        for asked in (*self._sent, *self._waiting):
            asked.future.cancel()

    def _asked(self, do: str, key: int, netns: NetnsOf | None) -> _Asked:
        self._count += 1
        future: Answer = self._loop.create_future()
        future.add_done_callback(_look_at)
        return _Asked(self._count, do, key, netns, future)

    # ---- the child ---------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Starts it where there is none, and sends what is due."""
        if not self._waiting or self._is_closed:
            return
        if self._child is None:
            if self._pause is None:
                self._pause = self._loop.call_at(self._not_before, self._start)
            return
        while self._waiting and len(self._sent) < AHEAD and not self._child.why:
            if not self._send(self._child, self._waiting[0]):
                return

    def _start(self) -> None:
        self._pause = None
        if not self._waiting:
            return
        try:
            self._child = Process()
        except OSError as error:
            self._after_a_death(f"cannot be started: {error.strerror}", None)
            return
        self._starts += 1
        self._loop.add_reader(self._child.channel.fileno(), self._receive, self._child)
        self._loop.add_reader(self._child.pidfd.fileno(), self._ended, self._child)
        self._loop.add_reader(self._child.stderr, self._listen, self._child)
        self._log.event("info", "podside-started", pid=self._child.pid)
        self._go_on()

    def _let_go(self, child: Process) -> None:
        self._loop.remove_reader(child.channel.fileno())
        self._loop.remove_reader(child.pidfd.fileno())
        self._loop.remove_reader(child.stderr)

    def _listen(self, child: Process) -> None:
        if not child.listen():
            self._loop.remove_reader(child.stderr)

    def _kill(self, child: Process, why: str) -> None:
        if not child.why:
            child.why = why
            self._loop.remove_reader(child.channel.fileno())
            child.process.kill()

    def _ended(self, child: Process) -> None:
        while not child.why and self._receive(child):  # what it said before
            pass
        self._let_go(child)
        ended = child.end()
        self._child = None
        self._after_a_death(child.why or ended, child)

    def _after_a_death(self, why: str, child: Process | None) -> None:
        self._log.event("warning", "podside-died", pid=child and child.pid, reason=why)
        self._silent_lives += 1
        self._not_before = self._loop.time() + self._backoff.next()
        self._arm(None)
        self._take_back()
        if self._silent_lives >= DEATHS:
            hopeless, self._waiting = self._waiting, deque()
            for asked in hopeless:
                asked.fail(Failed(f"podside {why}"))
        elif self._waiting and self._waiting[0].deaths:
            self._put_off(self._waiting[0], why)
        self._events.died()
        self._go_on()

    def _take_back(self) -> None:
        """What was sent waits again, in its order; the oldest was what it died of, perhaps."""
        if self._sent:
            self._sent[0].deaths += 1
        back = [asked for asked in self._sent if asked.do != wire.FORGET]
        self._sent.clear()
        self._waiting = deque(asked for asked in self._waiting if asked.do != wire.FORGET)
        self._waiting.extendleft(reversed(back))

    def _put_off(self, asked: _Asked, why: str) -> None:
        if asked.deaths >= DEATHS:
            self._waiting.popleft()
            asked.fail(Failed(f"podside {why}, {DEATHS} times"))
        elif asked.deaths == DEATHS - 1:  # with all of its netns: their order means something
            same = [each for each in self._waiting if each.key == asked.key]
            others = [each for each in self._waiting if each.key != asked.key]
            self._waiting = deque([*others, *same])

    # ---- messages ----------------------------------------------------------------------------

    def _send(self, child: Process, asked: _Asked) -> bool:
        """Whether the next one may follow."""
        netns = None if asked.netns is None else asked.netns()
        if asked.netns is not None and netns is None:
            self._waiting.popleft()
            asked.fail(Stale("that netns is not held any more"))
            return True
        request = wire.encode_request(wire.Request(asked.number, asked.do, asked.key))
        try:
            child.channel.send(request, [] if netns is None else [netns.fileno()], 0)
        except SyscallError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return False  # its end is told by the pidfd
            if error.errno == errno.ETIMEDOUT and self._sent:
                return False  # no room: with the next answer
            self._waiting.popleft()
            asked.fail(Failed(str(error)))
            return True
        self._waiting.popleft()
        if not self._sent:
            self._arm(child)
        self._sent.append(asked)
        return True

    def _arm(self, child: Process | None, seconds: float = 0.0, why: str = "") -> None:
        """The oldest request has its time from now on, or the child what is left of its life."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if child is not None:
            why = why or f"did not answer in {DEADLINE:g} s"
            self._deadline = self._loop.call_later(seconds or DEADLINE, self._kill, child, why)

    def _receive(self, child: Process) -> bool:
        """Takes one message; whether there was one."""
        try:
            data, _ = child.channel.receive(wire.MAX_MESSAGE, 0, 0)
            if data:
                self._take(child, wire.decode_reply(data))
                return True
        except SyscallError as error:
            if error.errno == errno.ETIMEDOUT:
                return False
            if error.errno != errno.ECONNRESET:
                self._kill(child, str(error))
                return False
        except ProtocolError as error:
            self._kill(child, f"said what it may not: {error}")
            return False
        # It has closed its end, and is ending; should it not be, it is of no use.
        self._loop.remove_reader(child.channel.fileno())
        self._arm(child, END, "closed its end")
        return False

    def _take(self, child: Process, reply: Reply) -> None:
        if isinstance(reply, wire.Repaired | wire.Trouble):
            self._events.reported(reply)
            return
        if not self._sent or self._sent[0].number != reply.id:
            raise ProtocolError(f"an answer to {reply.id}, which was not due")
        asked = self._sent.popleft()
        self._silent_lives = 0
        self._backoff.reset()
        self._arm(child if self._sent else None)
        if isinstance(reply, wire.Failed):
            asked.fail(Failed(reply.error))
        elif not asked.future.done():
            asked.future.set_result(reply)
        self._go_on()
