"""ZDS messages: what a node agent and a ztunnel say to each other, as bytes and as objects.

One message is one packet, of at most 1024 bytes, since both of Istio's programs read into a buffer
of that size. A request has exactly one response, known by its place in the order alone. The netns
of an Add rides beside the bytes. Pure; the conversation is in zds_ztunnel.py and zds_agent.py.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from pyztun.errors import ProtocolError
from pyztun.protocol import zds_pb2 as pb

MAX_MESSAGE = 1024
"""Bytes of a packet; a longer one is cut by the receiver's recvmsg() (MSG_TRUNC)."""
MAX_NACK_TEXT = 996
"""Bytes of a refusal: below 1000, and the packet with its two headers of 3 bytes below 1024."""


class WorkloadInfo(NamedTuple):
    """What a workload is called in the mesh."""

    name: str
    namespace: str
    service_account: str


class Add(NamedTuple):
    """Serve this workload in the netns whose descriptor comes with the message."""

    uid: str
    info: WorkloadInfo


class Keep(NamedTuple):
    """In a snapshot: this workload is meant to be there, but its netns cannot be opened now."""

    uid: str


class Del(NamedTuple):
    """Stop serving this workload."""

    uid: str


class SnapshotSent(NamedTuple):
    """What was added or kept on this connection so far is all that there is."""


Request = Add | Keep | Del | SnapshotSent


def hello() -> bytes:
    """The first message of a connection, from ztunnel; the only one that is not an answer."""
    return pb.ZdsHello(version=pb.V1).SerializeToString()


def read_hello(message: bytes) -> int:
    """The version of a Hello, which may be one that we do not know. ProtocolError."""
    return int(_parsed(pb.ZdsHello, message, "a Hello").version)


def encode(request: Request) -> bytes:
    """The bytes of a request. ValueError where they do not fit into a packet.

    An Add goes out with exactly one descriptor, everything else with none.
    """
    message = _message_of(request).SerializeToString()
    if len(message) > MAX_MESSAGE:
        raise ValueError(f"{len(message)} bytes, and a ZDS message has at most {MAX_MESSAGE}")
    return message


def _message_of(request: Request) -> pb.WorkloadRequest:
    if isinstance(request, Add):
        info = pb.WorkloadInfo(**request.info._asdict())
        return pb.WorkloadRequest(add=pb.AddWorkload(uid=request.uid, workload_info=info))
    if isinstance(request, Keep):
        return pb.WorkloadRequest(keep=pb.KeepWorkload(uid=request.uid))
    if isinstance(request, Del):
        message = pb.WorkloadRequest()
        getattr(message, "del").uid = request.uid  # a word of the language
        return message
    return pb.WorkloadRequest(snapshot_sent=pb.SnapshotSent())


def decode(message: bytes, descriptors: int) -> Request:
    """Reads a request that came with so many descriptors; unknown fields are skipped.

    :raises ProtocolError: not a request, one that lacks what it needs, or with another number of
        descriptors than belongs to it.
    """
    parsed = _parsed(pb.WorkloadRequest, message, "a WorkloadRequest")
    kind = parsed.WhichOneof("payload")
    if kind is None:
        raise ProtocolError("a WorkloadRequest without a payload that we know")
    wanted = 1 if kind == "add" else 0
    if descriptors != wanted:
        raise ProtocolError(f"{kind} with {descriptors} descriptors where {wanted} belongs")
    if kind == "snapshot_sent":
        return SnapshotSent()
    uid: str = getattr(parsed, kind).uid
    if not uid:
        raise ProtocolError(f"{kind} without a uid")
    if kind != "add":
        return Keep(uid) if kind == "keep" else Del(uid)
    if not parsed.add.HasField("workload_info"):
        raise ProtocolError("add without workload_info")
    info = parsed.add.workload_info
    return Add(uid, WorkloadInfo(info.name, info.namespace, info.service_account))


def ack() -> bytes:
    """The response that agrees. Never empty: a message without bytes is the end of a connection."""
    return pb.WorkloadResponse(ack=pb.Ack()).SerializeToString()


def nack(reason: str) -> bytes:
    """The response that refuses; a long reason is clipped on a character boundary."""
    text = clip(reason, MAX_NACK_TEXT) or "refused"
    return pb.WorkloadResponse(ack=pb.Ack(error=text)).SerializeToString()


def read_response(message: bytes) -> str:
    """Reads a response: empty text for an ACK, else why the request was refused. ProtocolError."""
    parsed = _parsed(pb.WorkloadResponse, message, "a WorkloadResponse")
    if parsed.WhichOneof("payload") != "ack":
        raise ProtocolError("a WorkloadResponse without an ack")
    return str(parsed.ack.error)


def clip(text: str, size: int) -> str:
    """The text in at most ``size`` bytes of UTF-8, cut between two characters.

    What UTF-8 cannot carry (a lone surrogate, from an undecodable path) is replaced.
    """
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


M = TypeVar("M", bound=Message)


def _parsed(kind: type[M], message: bytes, what: str) -> M:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise ProtocolError(f"not {what}: {error}") from None
