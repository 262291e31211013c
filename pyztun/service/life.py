"""Threads and signals of a service: the main thread waits, the others work.

Every signal that ends the service is blocked in every thread, and the main thread takes it out of
the queue with sigtimedwait(): no handler ever runs in the middle of anything. A worker that ends,
well or badly, tells the main thread by a signal too, so that there is one place to wait.
"""

from __future__ import annotations

import signal
import threading
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.service.log import Log

THREAD_ENDED = signal.SIGUSR2
FOREVER = 10.0**9


def block_signals() -> None:
    """To be called before any thread is started: threads inherit the mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [*stop_signals(), THREAD_ENDED])


def stop_signals() -> list[signal.Signals]:
    """The signals that end the service, less those that whoever started us had ignored.

    nohup ignores SIGHUP and a script's `&` ignores SIGINT; but a signal that is blocked is not
    discarded for being ignored, so sigwait() would see it (kernel/signal.c, sig_ignored()).
    """
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]


def next_signal(seconds: float = FOREVER) -> int | None:
    """Waits for a stop signal or THREAD_ENDED; None when the time is over."""
    info = signal.sigtimedwait([*stop_signals(), THREAD_ENDED], seconds)
    return None if info is None else info.si_signo


class Worker(threading.Thread):
    """A thread whose end, good or bad, reaches main as a signal.

    :ivar ended: its body has returned or raised.
    :ivar failed: it raised, which is a bug, and has been logged.
    """

    def __init__(self, name: str, body: Callable[[], None], log: Log) -> None:
        super().__init__(name=name, daemon=True)
        self._body, self._log = body, log
        self._main = threading.main_thread().ident
        self.ended = self.failed = False

    def run(self) -> None:
        try:
            self._body()
        except BaseException:
            self.failed = True
            self._log.event("error", "bug", thread=self.name, traceback=traceback.format_exc())
        finally:
            self.ended = True
            signal.pthread_kill(self._main or 0, THREAD_ENDED)
