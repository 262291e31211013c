"""One request to the agent's control API, over a channel of our own.

http.client would take as long to import as everything else that `add` does. What is needed of HTTP
is little: one request a connection, and an answer that says how long it is.
"""

from __future__ import annotations

import errno
import json
from time import monotonic

from pyztun.channel import Channel
from pyztun.errors import ProtocolError, PyztunError, SyscallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

GRACE = 2.0
"""Seconds beyond the agent's own timeout: it should be the one to say that it has passed."""
MAX_HEAD, MAX_ANSWER = 16 * 1024, 256 * 1024 * 1024
CHUNK = 64 * 1024
MAX_DIGITS = 12
UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~"
"""Of RFC 3986, less the dot: a part `..` would go up."""
NOBODY = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
GONE = (errno.EPIPE, errno.ECONNRESET)
OK = 200


class NoAgent(PyztunError):
    """Nobody can be asked at the socket."""


class NoAnswer(PyztunError):
    """The request is out, and the agent did not say what became of it."""


class Refused(Exception):
    """The agent says no, or not yet.

    :ivar code: a word for machines; docs/api.md lists them.
    :ivar reason: one line for people, of whatever characters.
    :ivar workload: as it is now, where the intent was kept all the same.
    """

    def __init__(self, code: str, reason: str, workload: Json | None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.workload = code, reason, workload


def ask(control: str, method: str, path: str, timeout: float, body: Json | None = None) -> Json:
    """Asks, and returns what an answer of 200 says.

    :param timeout: seconds that the agent was given; the wait is GRACE longer, in all.
    :raises Refused, NoAgent, NoAnswer, ProtocolError, SyscallError:
    """
    deadline = monotonic() + timeout + GRACE
    text = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\n"
        "Host: localhost\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    )
    with _connect(control, deadline) as channel:
        try:
            channel.send(head.encode() + text, timeout=_left(deadline))
        except SyscallError as error:
            if error.errno not in GONE:
                raise
            # It may have answered before it read everything.
        status, answer = _receive(channel, deadline)
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ProtocolError(f"{control}: what answers there is not the agent")
    if status != OK:
        kept = said.get("workload")
        raise Refused(
            str(said.get("error", status)),
            str(said.get("reason", "no reason was given")),
            kept if isinstance(kept, dict) else None,
        )
    return said


def encoded(key: str) -> str:
    """As one part of a path."""
    raw = key.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in UNRESERVED else f"%{byte:02X}" for byte in raw)


def _connect(control: str, deadline: float) -> Channel:
    try:
        return Channel.connect(control, timeout=_left(deadline))
    except SyscallError as error:
        if error.errno == errno.EACCES:
            allowed = "root may, or a uid of the agent's --allow-uid with its --mode and --group"
            raise NoAgent(f"connect {control}: EACCES: {allowed}") from error
        if error.errno not in NOBODY:
            raise NoAgent(str(error)) from error
        name = errno.errorcode[error.errno]
        raise NoAgent(f"connect {control}: {name}: is `pyztun-cni agent` running?") from error


def _left(deadline: float) -> float:
    return max(0.0, deadline - monotonic())


def _receive(channel: Channel, deadline: float) -> tuple[int, bytes]:
    """Status and body."""
    came = bytearray()
    while (end := came.find(b"\r\n\r\n")) < 0:
        if len(came) > MAX_HEAD:
            raise ProtocolError(f"{channel.name}: what answers there is not the agent")
        came += _more(channel, deadline)
    status, length = _read_head(bytes(came[:end]), channel.name)
    del came[: end + 4]
    while len(came) < length:
        came += _more(channel, deadline)
    return status, bytes(came[:length])


def _more(channel: Channel, deadline: float) -> bytes:
    try:
        data, _ = channel.receive(CHUNK, 0, _left(deadline))
    except SyscallError as error:
        if error.errno == errno.ETIMEDOUT:
            raise NoAnswer(f"{channel.name}: the agent does not answer in time") from error
        if error.errno not in GONE:
            raise
        data = b""
    if not data:
        raise NoAnswer(f"{channel.name}: the agent closed the connection before it answered")
    return data


def _read_head(head: bytes, name: str) -> tuple[int, int]:
    line, *fields = head.decode("latin-1").split("\r\n")
    version, _, rest = line.partition(" ")
    status, length = rest[:3], ""
    for field in fields:
        key, _, value = field.partition(":")
        if key.lower() == "content-length":
            length = value.strip()
    numbers = status.isascii() and status.isdigit() and length.isascii() and length.isdigit()
    fits = numbers and len(length) <= MAX_DIGITS and int(length) <= MAX_ANSWER
    if not version.startswith("HTTP/1.") or not fits:
        raise ProtocolError(f"{name}: what answers there is not the agent")
    return int(status), int(length)
