"""The life of the agent's process: who runs in which thread, how it starts, how it ends.

main        blocks in sigwait(); every other thread has all signals blocked
agent       an asyncio loop with all the rest: ztunnels, control API, watch, reconcile
log         writes stdout and stderr

Since Linux 6.18 no thread ever enters another netns; before, the agent thread does to ask for its
cookie, where it may (opening.py). Rules in pods are the work of a child (podside.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.cni import output
from pyztun.cni.agent.connection import BOUNDS
from pyztun.cni.agent.control import Control
from pyztun.cni.agent.core import Core
from pyztun.cni.agent.lifecycle import Lifecycle
from pyztun.cni.agent.opening import Opener
from pyztun.cni.agent.reconcile import Reconcile
from pyztun.cni.agent.registry import Registry
from pyztun.cni.agent.settings import parse
from pyztun.cni.agent.store import Store
from pyztun.cni.agent.ztunnels import MAX_ZTUNNELS
from pyztun.errors import PyztunError
from pyztun.netns import NetNs
from pyztun.service import life
from pyztun.service.fdlimit import raise_fd_limit
from pyztun.service.log import Log
from pyztun.service.notify import notify
from pyztun.socketfile import SocketFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyztun.cni.agent.settings import Settings

OWN_FDS = 64
"""stdio, the registry, epoll and wake fds, what Python opens, and a request's for a moment."""
RESERVED_FDS = OWN_FDS + MAX_ZTUNNELS + BOUNDS.connections + BOUNDS.strangers
"""For everything but the netns of workloads; about 20 in between are being closed, or arriving."""
STOP_TIME = 15.0
"""Seconds for the end; its own limits add up to less, unless the thread is stuck."""


def main(words: Sequence[str]) -> int:
    """Runs the agent until it is told to stop; returns the exit status."""
    settings = parse(words)
    try:
        return run(settings)
    except (PyztunError, OSError, RuntimeError) as error:
        # RuntimeError: no thread can be started. What goes wrong later, in a thread, is logged.
        output.complain(f"{error}{_as_whom(error)}")
        return 1


def _as_whom(error: Exception) -> str:
    if os.geteuid() == 0 or "denied" not in str(error):
        return ""
    return " (as another user than root give --state-dir, --zds and --control)"


def run(settings: Settings) -> int:
    """See main(). PyztunError, OSError at the start."""
    life.block_signals()
    max_held = raise_fd_limit() - RESERVED_FDS
    if max_held < 1:
        raise PyztunError(f"RLIMIT_NOFILE {max_held + RESERVED_FDS} is too low: raise it")
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(NetNs.current())
        for path in (settings.zds, settings.control):
            _make_directory(os.path.dirname(os.path.abspath(path)))
        _make_directory(os.path.abspath(settings.state_dir))
        store = stack.enter_context(contextlib.closing(Store(settings.state_dir)))
        zds = _listen(settings, settings.zds, socket.SOCK_SEQPACKET)
        stack.callback(zds.close)
        control = _listen(settings, settings.control, socket.SOCK_STREAM)
        stack.callback(control.close)
        log = Log("pyztun-cni", settings.log_format)
        stack.callback(log.close)
        agent = Agent(settings, home, max_held, store, control, zds, log)
        return _serve(agent, log)


def _listen(settings: Settings, path: str, kind: socket.SocketKind) -> SocketFile:
    return SocketFile.listen(path, kind, mode=settings.mode, group=settings.group)


def _make_directory(path: str) -> None:
    """One directory, as `/run/pyztun` after a boot; what is above it is the user's to make."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        parent = os.path.dirname(path)
        raise PyztunError(f"{path}: there is no {parent}, and only the last part is made") from None
    except OSError as error:
        raise PyztunError(f"{path}: {error.strerror}") from error


class Agent:
    """What runs in the loop. The constructor and stop() belong to the main thread."""

    def __init__(
        self,
        settings: Settings,
        home: NetNs,
        max_held: int,
        store: Store,
        control: SocketFile,
        zds: SocketFile,
        log: Log,
    ) -> None:
        self._settings, self._home, self._max_held = settings, home, max_held
        self._store, self._control, self._zds, self._log = store, control, zds, log
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def run(self) -> None:
        """The body of the agent thread: until stop()."""
        with contextlib.closing(self._loop):
            self._loop.set_exception_handler(self._bug)
            self._loop.run_until_complete(self._main())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())

    def stop(self) -> None:
        """Has run() return soon; the sockets go first, so that who comes now learns it at once."""
        self._control.remove()
        self._zds.remove()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        what = {key: str(value) for key, value in context.items()}
        error = context.get("exception")
        if isinstance(error, BaseException):
            what["traceback"] = _traceback(error)
        self._log.event("error", "bug", **what)

    async def _main(self) -> None:
        settings, log = self._settings, self._log
        registry = Registry(self._store, self._boot_id, log)
        registry.load()
        opener = Opener(self._home)
        lifecycle = Lifecycle(
            self._zds.socket, settings.ztunnel_uids, registry, opener, self._max_held, log
        )
        reconcile = Reconcile(
            settings.reconcile, lambda: list(registry.workloads.values()), lifecycle.repair
        )
        core = Core(settings, registry, opener, lifecycle, reconcile, self._boot_id, log)
        control = Control(core, self._control, settings.allow_uids, log)
        await control.start()
        self._report_start(registry)
        try:
            await self._until_told(lifecycle, reconcile)
        finally:
            core.close()
            await control.close()
            lifecycle.close()
            registry.close()

    def _report_start(self, registry: Registry) -> None:
        settings, store = self._settings, self._store
        if store.set_aside is not None:
            self._log.event(
                "error", "registry-corrupt", moved_to=store.set_aside, salvaged=store.salvaged
            )
        self._log.event(
            "info",
            "serving",
            zds=settings.zds,
            control=settings.control,
            registry=store.path,
            workloads=len(registry.workloads),
            max_workloads=self._max_held,
        )
        self._log.announce("agent ready")
        notify("READY=1")

    async def _until_told(self, lifecycle: Lifecycle, reconcile: Reconcile) -> None:
        """Ends with the others when one of the loops has a bug: that is for a restart to cure."""
        tasks = {
            asyncio.create_task(self._stopping.wait(), name="stop"),
            asyncio.create_task(lifecycle.watch.run(lambda: lifecycle.unknown), name="watch"),
            asyncio.create_task(reconcile.run(), name="reconcile"),
        }
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _serve(agent: Agent, log: Log) -> int:
    """Waits in the main thread for signals and for the end of the agent thread."""
    worker = life.Worker("agent", agent.run, log)
    worker.start()
    stop_signals = life.stop_signals()
    deadline: float | None = None
    while not worker.ended:
        left = life.FOREVER if deadline is None else max(0.0, deadline - monotonic())
        received = life.next_signal(left)
        if received is None or (received in stop_signals and deadline is not None):
            return _end_at_once(agent, log)
        if received in stop_signals:
            deadline = monotonic() + STOP_TIME
            log.event("info", "stopping", signal=signal.Signals(received).name)
            notify("STOPPING=1")
            agent.stop()
    log.event("info", "stopped")
    return 1 if worker.failed else 0


def _end_at_once(agent: Agent, log: Log) -> int:
    """Ends the process without waiting. What was acknowledged is on disk."""
    agent.stop()
    log.event("warning", "ended-at-once")
    log.close(0.2)
    os._exit(1)
