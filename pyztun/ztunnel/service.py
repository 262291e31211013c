"""The life of the process: who runs in which thread, how it starts, how it ends.

main          blocks in sigwait(); every other thread has all signals blocked
handoff       a native wait and its policy (seed_form.py or zds_form.py); visits the pods
connections   seed form: answers those of all pods; ZDS form: reads what became of them, while
              threads in C relay them
log           writes stdout and stderr

An end is one chain: a signal -> the socket file goes, handoff is woken -> it ends with its peers
and returns -> connections is woken -> what is queued is served, the listeners close, it
waits for what is open -> the process exits. A second signal cuts the chain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass

from pyztun import native
from pyztun.netns import NetNs
from pyztun.service import life
from pyztun.service.fdlimit import raise_fd_limit
from pyztun.service.log import Log
from pyztun.service.notify import notify
from pyztun.ztunnel import limits
from pyztun.ztunnel.settings import SeedSettings
from pyztun.ztunnel.workloads import Workloads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.ztunnel.answers import Answers
    from pyztun.ztunnel.form import Form
    from pyztun.ztunnel.settings import Settings

GIL_PATIENCE = 0.0001
"""Seconds after which the handoff thread, back with a request, takes the GIL from the log thread.

The default of 5 ms is longer than the log needs for a burst of lines: a request would wait for all.
"""
STOP_TIME = 15.0
"""Seconds for a drain beside what connections have; it takes less, unless a thread is stuck."""


def run(settings: Settings) -> int:
    """Runs the service until it is told to stop; returns the exit status. PyztunError at start."""
    life.block_signals()
    sys.setswitchinterval(GIL_PATIENCE)
    form = _form_of(settings)
    with NetNs.current() as home:
        native.prove_home(home.fileno())
        budget = limits.share_out(raise_fd_limit(), form.needs, settings.max_workloads)
        form.open()
        log = Log("pyztun-ztunnel", settings.log_format)
        try:
            return _serve(_Parts.make(form, budget, home, log), STOP_TIME + settings.drain)
        finally:
            form.leave()
            log.close()


def _form_of(settings: Settings) -> Form:
    """The one that was asked for; the other is not even imported."""
    if isinstance(settings.form, SeedSettings):
        from pyztun.ztunnel.seed_form import SeedForm

        return SeedForm(settings.form)
    from pyztun.ztunnel.zds_form import ZdsForm

    return ZdsForm(settings.form, settings.log_format)


@dataclass
class _Parts:
    """What the threads share."""

    log: Log
    form: Form
    answers: Answers
    workloads: Workloads

    @classmethod
    def make(cls, form: Form, budget: limits.Budget, home: NetNs, log: Log) -> _Parts:
        answers = form.answers(budget, log)
        workloads = Workloads(answers)
        form.prepare(workloads, budget, home, log)
        return cls(log, form, answers, workloads)

    def close(self) -> None:
        self.workloads.drop_all()
        self.form.close()
        self.answers.close()


def _serve(parts: _Parts, stop_time: float) -> int:
    handoff = life.Worker("handoff", parts.form.run, parts.log)
    connections = life.Worker("connections", lambda: _answer(parts), parts.log)
    connections.start()
    handoff.start()
    notify("READY=1")
    stop_signals, stopping = life.stop_signals(), False
    patience: float = life.FOREVER
    while not (handoff.ended and connections.ended):
        received = life.next_signal(patience)
        if received is None:
            parts.log.event("error", "stuck", seconds=stop_time)
            return _end_at_once(parts)
        if received in stop_signals and stopping:
            return _end_at_once(parts)
        if handoff.failed or connections.failed:
            return _end_at_once(parts)
        if received in stop_signals:
            stopping, patience = True, stop_time
            parts.log.event("info", "draining", signal=signal.Signals(received).name)
            notify("STOPPING=1")
            parts.form.leave()
            parts.form.stop()
        elif handoff.ended and not connections.ended:
            # Nobody reads requests any more: their senders need not wait for the pods' clients.
            parts.form.close()
            parts.answers.stop()
    parts.close()
    parts.log.event("info", "stopped")
    return 0


def _answer(parts: _Parts) -> None:
    """The connections thread. Behind run() it owns the workloads: the handoff thread has ended."""
    parts.answers.run()
    parts.answers.accept_queued()
    parts.workloads.drop_all()
    cut = parts.answers.finish()
    if cut:
        parts.log.event("warning", "cut", connections=cut)


def _end_at_once(parts: _Parts) -> int:
    """Ends the process without waiting for the threads.

    The listeners are closed here: should a thread be stuck in the kernel, the process does not
    quite end, and would hold the ports. What the threads do with the numbers no longer matters.
    """
    parts.form.leave()
    with contextlib.suppress(RuntimeError):  # the handoff thread may be changing the dict
        for workload in list(parts.workloads):
            workload.close_listeners()
    parts.log.event("warning", "ended-at-once")
    parts.log.close(0.2)
    os._exit(1)
