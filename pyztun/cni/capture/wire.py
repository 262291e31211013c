"""What the agent and podside say to each other: one JSON object a message. Pure.

A request carries one descriptor of the pod's netns, except `forget`. Answers come in the order of
the requests; notices come when they like.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from pyztun.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGE: Final = 4096
MAX_TEXT: Final = 1000
"""Bytes of an error: JSON writes some of them as two."""
MAX_WORDS: Final = 8
MAX_WORD: Final = 40
MAX_NUMBER: Final = 2**64 - 1

CAPTURE, RELEASE, FORGET = "capture", "release", "forget"
FDS: Final = {CAPTURE: 1, RELEASE: 1, FORGET: 0}
"""How many descriptors come with each request."""

RULES: Final = "rules"
"""The word for nftables in `written`; routes.NAMES has the others."""


class Request(NamedTuple):
    """To podside.

    :ivar key: chosen by the agent, one for each netns.
    """

    id: int
    do: str
    key: int


class Done(NamedTuple):
    """To the agent: the answer to a request.

    :ivar written: what was missing or differed, or was removed; empty: nothing had to be done.
    :ivar flushed: whether conntrack was flushed.
    :ivar without: what cannot be had now. It is put there when it can.
    """

    id: int
    written: tuple[str, ...]
    flushed: bool
    without: tuple[str, ...]


class Failed(NamedTuple):
    """To the agent: the answer to a request that failed.

    :ivar error: one line that names syscall or library, and why.
    """

    id: int
    error: str


class Repaired(NamedTuple):
    """To the agent, unasked: somebody had changed it. Ends a Trouble."""

    key: int
    written: tuple[str, ...]
    flushed: bool


class Trouble(NamedTuple):
    """To the agent, unasked: it is not as it should be, and podside goes on trying."""

    key: int
    trouble: str


Reply = Done | Failed | Repaired | Trouble


def encode_request(request: Request) -> bytes:
    """The message of a request."""
    return _encode(request._asdict())


def decode_request(message: bytes) -> Request:
    """The request of a message. ProtocolError."""
    given = _object(message)
    _expect_names(given, {"id", "do", "key"})
    do = given["do"]
    if not isinstance(do, str) or do not in FDS:
        raise ProtocolError(f"podside: unknown request {do!r:.40}")
    return Request(_number(given, "id"), do, _number(given, "key"))


def encode_reply(reply: Reply) -> bytes:
    """The message of an answer or a notice. Texts are clipped, control characters replaced."""
    if isinstance(reply, Done):
        done = {"written": reply.written, "flushed": reply.flushed, "without": reply.without}
        return _encode({"id": reply.id, "done": done})
    if isinstance(reply, Failed):
        return _encode({"id": reply.id, "error": one_line(reply.error)})
    if isinstance(reply, Repaired):
        return _encode({"key": reply.key, "repaired": reply.written, "flushed": reply.flushed})
    return _encode({"key": reply.key, "trouble": one_line(reply.trouble)})


def decode_reply(message: bytes) -> Reply:
    """The answer or the notice of a message. ProtocolError."""
    given = _object(message)
    if "done" in given:
        _expect_names(given, {"id", "done"})
        done = given["done"]
        if not isinstance(done, dict):
            raise ProtocolError("podside: done is no object")
        _expect_names(done, {"written", "flushed", "without"})
        words = _words(done, "written"), _words(done, "without")
        return Done(_number(given, "id"), words[0], _flag(done, "flushed"), words[1])
    if "error" in given:
        _expect_names(given, {"id", "error"})
        return Failed(_number(given, "id"), _text(given, "error"))
    if "repaired" in given:
        _expect_names(given, {"key", "repaired", "flushed"})
        return Repaired(_number(given, "key"), _words(given, "repaired"), _flag(given, "flushed"))
    _expect_names(given, {"key", "trouble"})
    return Trouble(_number(given, "key"), _text(given, "trouble"))


def one_line(text: str) -> str:
    """The text on one line, of at most MAX_TEXT bytes."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")


def _encode(given: Mapping[str, object]) -> bytes:
    message = json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()
    if len(message) > MAX_MESSAGE:
        raise ProtocolError(f"podside: a message of {len(message)} bytes")
    return message


def _object(message: bytes) -> dict[str, object]:
    if len(message) > MAX_MESSAGE:
        raise ProtocolError(f"podside: a message of {len(message)} bytes")
    try:
        given = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("podside: a message that is no JSON") from error
    if not isinstance(given, dict):
        raise ProtocolError("podside: a message that is no object")
    return given


def _expect_names(given: Mapping[str, object], expected: set[str]) -> None:
    if set(given) != expected:
        raise ProtocolError(f"podside: {sorted(given)!r:.80} instead of {sorted(expected)}")


def _number(given: Mapping[str, object], name: str) -> int:
    number = given[name]
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise ProtocolError(f"podside: {name} is {number!r:.40}")
    return number


def _flag(given: Mapping[str, object], name: str) -> bool:
    flag = given[name]
    if not isinstance(flag, bool):
        raise ProtocolError(f"podside: {name} is {flag!r:.40}")
    return flag


def _text(given: Mapping[str, object], name: str) -> str:
    text = given[name]
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ProtocolError(f"podside: {name} is {text!r:.40}")
    return text


def _words(given: Mapping[str, object], name: str) -> tuple[str, ...]:
    words = given[name]
    if not isinstance(words, list) or len(words) > MAX_WORDS:
        raise ProtocolError(f"podside: {name} is {words!r:.40}")
    for word in words:
        if not isinstance(word, str) or len(word) > MAX_WORD:
            raise ProtocolError(f"podside: {name} has {word!r:.40}")
    return tuple(words)
