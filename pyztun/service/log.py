"""The log: events go into a bounded queue, a thread of their own writes them.

A full pipe on stdout or stderr blocks whoever writes to it. The handoff thread therefore never
writes: it appends to the queue, and where the queue is full the event is dropped and counted.
What a hostile peer can cause at will is not repeated: after the first, equal ones are counted and
summed up.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from datetime import datetime, timezone
from queue import Empty, SimpleQueue
from time import monotonic, time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_QUEUED = 4096
GATHER = 0.02
"""Seconds for which the writer lets events gather, so that a burst costs one wake-up."""
QUIET = 10.0
"""Seconds during which an event that may repeat is counted instead of written."""
STDOUT, STDERR = 1, 2

Event = tuple[float, str, str, "Mapping[str, object]"]


class Log:
    """Takes events from any thread without ever blocking it."""

    def __init__(self, program: str, form: str) -> None:
        """:param form: ``human`` or ``json``."""
        self._program, self._json = program, form == "json"
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._dropped = 0
        self._repeats: dict[str, list[float]] = {}  # key: [end of the quiet time, count]
        # A daemon: a writer that hangs in a full pipe must not keep the process from ending.
        self._writer = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._writer.start()

    def event(self, level: str, name: str, **fields: object) -> None:
        """Logs one event: a line on stderr, soon."""
        self._put((time(), level, name, fields))

    def announce(self, line: str) -> None:
        """Prints a line on stdout, soon: what a person or a script waits for."""
        self._put((0.0, "stdout", line, {}))

    def _put(self, event: Event) -> None:
        if self._queue.qsize() >= MAX_QUEUED:
            self._dropped += 1
        else:
            self._queue.put(event)

    def close(self, timeout: float = 1.0) -> None:
        """Writes what is queued, for ``timeout`` seconds at most."""
        self._queue.put(None)
        self._writer.join(timeout)

    def _write_all(self) -> None:
        gather = threading.Event()
        going_on = True
        while going_on:
            batch: list[Event | None] = []
            with contextlib.suppress(Empty):
                batch.append(self._queue.get(timeout=QUIET if self._repeats else None))
                if batch[0] is not None:
                    gather.wait(GATHER)
                while len(batch) < MAX_QUEUED:
                    batch.append(self._queue.get_nowait())
            going_on = None not in batch
            self._write([event for event in batch if event is not None], last=not going_on)

    def _write(self, events: list[Event], last: bool) -> None:
        out = "".join(f"{name}\n" for _, level, name, _ in events if level == "stdout")
        err = [self._line(*event) for event in events if not self._is_repeat(event)]
        err += self._sums(last)
        _write_fd(STDOUT, out)
        _write_fd(STDERR, "".join(err))

    def _is_repeat(self, event: Event) -> bool:
        _when, level, name, fields = event
        if level == "stdout":
            return True
        if level != "peer":
            return False
        key = f"{name} {fields.get('reason', '')}"
        seen = self._repeats.get(key)
        if seen is None:
            if len(self._repeats) >= MAX_QUEUED:
                self._repeats.clear()
            self._repeats[key] = [monotonic() + QUIET, 0]
            return False
        seen[1] += 1
        return True

    def _sums(self, last: bool) -> list[str]:
        lines = []
        for key, (until, count) in list(self._repeats.items()):
            if not last and monotonic() < until:
                continue
            del self._repeats[key]
            if count:
                fields = {"what": key, "count": int(count)}
                lines.append(self._line(time(), "warning", "repeated", fields))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines.append(self._line(time(), "warning", "log-dropped", {"count": dropped}))
        return lines

    def _line(self, when: float, level: str, name: str, fields: Mapping[str, object]) -> str:
        stamp = datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="milliseconds")
        level = "warning" if level == "peer" else level
        if self._json:
            record = {"time": stamp, "level": level, "program": self._program, "event": name}
            return json.dumps({**record, **fields}, default=str) + "\n"
        words = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        return f"{stamp.replace('+00:00', 'Z')} {level} {name} {words}".rstrip() + "\n"


def _quoted(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text != "" and not any(c in text for c in ' "=')
    return text if plain else json.dumps(text)


def _write_fd(fd: int, text: str) -> None:
    """Writes straight to the fd: a daemon thread inside sys.stdout's lock would break the exit."""
    rest = text.encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(fd, rest) :]
