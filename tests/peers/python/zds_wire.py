"""ZDS as bytes, from the description of the protocol alone: for the two peers beside it.

Standard library only, and nothing of the programs that the peers judge.
"""

import array
import json
import socket
import sys
from collections.abc import Sequence
from typing import Any

Field = tuple[int, bytes | int]
Request = tuple[int, str, list[str] | None]

BUFFER = 1024
CMSG_SPACE_OF_ONE = socket.CMSG_SPACE(4)

HELLO = bytes([0x08, 1])
ACK = bytes([0x0A, 0])
SNAPSHOT_SENT = bytes([0x1A, 0])

ADD, DEL, SENT, KEEP = 1, 2, 3, 5
NAMES = {ADD: "add", DEL: "del", SENT: "snapshot_sent", KEEP: "keep"}


class WireError(Exception):
    """What came is not what the protocol says."""


# ---- protobuf ------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        low, number = number & 0x7F, number >> 7
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def text(number: int, value: str) -> bytes:
    """A string field; proto3 leaves an empty one out."""
    raw = value.encode()
    return field(number, raw) if raw else b""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError("a bad varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def read_fields(data: bytes) -> list[Field]:
    """(number, content) of each field: bytes, or the int of a varint; others are skipped."""
    at = 0
    found: list[Field] = []
    while at < len(data):
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(data, at)
            found.append((number, value))
        elif kind == 2:
            size, at = read_varint(data, at)
            if at + size > len(data):
                raise WireError("a field that is longer than its message")
            found.append((number, bytes(data[at : at + size])))
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > len(data):
                raise WireError("a field that is longer than its message")
        else:
            raise WireError(f"wire type {kind}")
    return found


def last(fields: Sequence[Field], number: int) -> bytes | None:
    """The bytes of a field that may come several times, of which the last counts."""
    value = None
    for its, content in fields:
        if its == number:
            if isinstance(content, int):
                raise WireError(f"field {number} has another type")
            value = content
    return value


def last_text(fields: Sequence[Field], number: int) -> str:
    try:
        return (last(fields, number) or b"").decode()
    except UnicodeDecodeError:
        raise WireError("a string that is not UTF-8") from None


# ---- messages ------------------------------------------------------------------------------------


def add(uid: str, name: str, namespace: str, service_account: str) -> bytes:
    info = text(1, name) + text(2, namespace) + text(3, service_account)
    return field(ADD, text(1, uid) + field(2, info))


def delete(uid: str) -> bytes:
    return field(DEL, text(2, uid))


def keep(uid: str) -> bytes:
    return field(KEEP, text(1, uid))


def nack(why: str) -> bytes:
    return field(1, text(1, why))


def read_request(data: bytes) -> Request:
    """(kind, uid, info): kind is one of NAMES, info of an Add is three texts, or None."""
    kind, content = 0, b""
    for number, each in read_fields(data):
        if number in NAMES:
            if isinstance(each, int):
                raise WireError(f"field {number} has another type")
            kind, content = number, each
    if not kind:
        raise WireError("a request without a payload")
    inside = read_fields(content)
    if kind == SENT:
        return kind, "", None
    if kind != ADD:
        return kind, last_text(inside, 2 if kind == DEL else 1), None
    info = last(inside, 2)
    texts = None
    if info is not None:
        fields = read_fields(info)
        texts = [last_text(fields, number) for number in (1, 2, 3)]
    return kind, last_text(inside, 1), texts


def read_response(data: bytes) -> str:
    """The text of a refusal; empty for an ACK."""
    ack = last(read_fields(data), 1)
    if ack is None:
        raise WireError("a response without an ack")
    return last_text(read_fields(ack), 1)


def read_hello(data: bytes) -> int:
    """Its version."""
    version = [content for number, content in read_fields(data) if number == 1]
    if any(isinstance(each, bytes) for each in version):
        raise WireError("a Hello whose version is no number")
    return int(version[-1]) if version else 0


# ---- packets -------------------------------------------------------------------------------------


def receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    """(bytes, fds, flags) of one packet, read as both of Istio's programs do."""
    data, ancillary, flags, _ = sock.recvmsg(BUFFER, CMSG_SPACE_OF_ONE, socket.MSG_CMSG_CLOEXEC)
    fds: array.array[int] = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), flags


def say(**what: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
