"""The messages between the agent and podside: there and back, bounded, nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyztun import ProtocolError
from pyztun.cni.capture import wire

REPLIES = [
    wire.Done(1, ("rules", "ipv4 routes"), flushed=True, without=("ipv6 routes",)),
    wire.Failed(2**64 - 1, "setns pod: EPERM"),
    wire.Repaired(3, ("rules",), flushed=True),
    wire.Trouble(4, "lo is down"),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_there_and_back(reply: wire.Reply) -> None:
    assert wire.decode_reply(wire.encode_reply(reply)) == reply


@pytest.mark.parametrize("do", wire.FDS)
def test_requests_there_and_back(do: str) -> None:
    request = wire.Request(7, do, 2**63)
    assert wire.decode_request(wire.encode_request(request)) == request


def test_form_on_the_wire() -> None:
    assert wire.encode_request(wire.Request(1, "capture", 2)) == b'{"id":1,"do":"capture","key":2}'
    done = b'{"id":1,"done":{"written":["rules"],"flushed":true,"without":[]}}'
    assert wire.encode_reply(wire.Done(1, ("rules",), flushed=True, without=())) == done


@given(st.text())
def test_any_text_fits_on_one_line(text: str) -> None:
    for reply in (wire.Failed(1, text * 50), wire.Trouble(2, text * 50)):
        message = wire.encode_reply(reply)
        assert len(message) <= wire.MAX_MESSAGE
        assert b"\n" not in message
        wire.decode_reply(message)


@pytest.mark.parametrize("text", ["\ud800", '"\\' * 3000, "\U0001f600" * 3000, "\x00\n" * 3000])
def test_texts_that_grow(text: str) -> None:
    assert len(wire.encode_reply(wire.Failed(1, text))) <= wire.MAX_MESSAGE


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 4000,
        b"7",
        b"{}",
        b'{"id":1,"do":"capture"}',
        b'{"id":1,"do":"capture","key":1,"more":1}',
        b'{"id":-1,"do":"capture","key":1}',
        b'{"id":true,"do":"capture","key":1}',
        b'{"id":1.0,"do":"capture","key":1}',
        b'{"id":1,"do":"capture","key":18446744073709551616}',
        b'{"id":1,"do":["capture"],"key":1}',
        b'{"id":1,"do":"capture","key":1' + b" " * 4096 + b"}",
        b'{"id":1,"done":{"written":[],"flushed":1,"without":[]}}',
        b'{"id":1,"done":{"written":"rules","flushed":true,"without":[]}}',
        b'{"id":1,"done":{"written":[1],"flushed":true,"without":[]}}',
        b'{"id":1,"done":[]}',
        b'{"id":1,"error":7}',
        b'{"key":1,"repaired":[' + b'"a",' * 8 + b'"a"],"flushed":true}',
        b'{"key":1,"trouble":"a","id":1}',
    ],
)
def test_anything_else_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(message)
    with pytest.raises(ProtocolError):
        wire.decode_reply(message)
