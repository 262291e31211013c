"""The messages of ZDS: golden bytes, what other writers may send, limits, and whatever else comes.

The bytes on the left of each table were written down from Istio's .proto by hand, and the small
writer below makes more of them: neither is made by what is tested.
"""

import contextlib
import errno
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyztun import ProtocolError, SyscallError, recv_fds, send_fds
from pyztun.protocol import zds
from pyztun.protocol.zds import Add, Del, Keep, Request, SnapshotSent, WorkloadInfo

LIMIT = 1024


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    head = bytearray()
    while number > 0x7F:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(head) + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes: a text or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def wire_add(uid: bytes, *info: bytes) -> bytes:
    texts = b"".join(field(n, text) for n, text in enumerate(info, 1) if text)
    return field(1, (field(1, uid) if uid else b"") + field(2, texts))


def add_of_size(size: int) -> Add:
    """An Add whose message has exactly so many bytes."""
    for length in range(size - 30, size):
        request = Add("u", WorkloadInfo("n" * length, "", ""))
        if len(wire_add(b"u", b"n" * length)) == size:
            return request
    raise AssertionError(size)


GOLDEN: list[tuple[str, Request]] = [
    ("1a 00", SnapshotSent()),
    ("12 03 12 01 75", Del("u")),
    ("2a 03 0a 01 75", Keep("u")),
    (
        "0a 0e 0a 01 75 12 09 0a 01 6e 12 01 6d 1a 01 73",
        Add("u", WorkloadInfo("n", "m", "s")),
    ),
]

# An unknown field of each wire type: varint, 64 bit, bytes, 32 bit; and a group.
UNKNOWN = {
    "varint": varint(99 << 3) + varint(300),
    "fixed64": varint(99 << 3 | 1) + bytes(8),
    "bytes": field(99, b"new"),
    "fixed32": varint(99 << 3 | 5) + bytes(4),
    "group": varint(99 << 3 | 3) + varint(1 << 3) + b"\x01" + varint(99 << 3 | 4),
    "reserved": field(7, b"\x0a\x01u"),
}

NOT_REQUESTS: list[tuple[str, int, str]] = [
    ("", 0, "without a payload"),
    ("08 01", 0, "without a payload"),  # a Hello
    ("22 00", 0, "without a payload"),  # field 4, which is no member of the oneof
    ("0a", 1, "not a WorkloadRequest"),
    ("0a 05 0a 01 75", 1, "not a WorkloadRequest"),  # cut
    ("2a 03 0a 01 ff", 0, "not a WorkloadRequest"),  # a uid that is not UTF-8
    ("0a 00", 1, "add without a uid"),
    ("0a 04 0a 00 12 00", 1, "add without a uid"),
    ("0a 03 0a 01 75", 1, "add without workload_info"),
    ("2a 00", 0, "keep without a uid"),
    ("12 00", 0, "del without a uid"),
    ("12 03 0a 01 75", 0, "del without a uid"),  # its uid has the number 2
    ("2a 03 12 01 75", 0, "keep without a uid"),  # and this one 1
]

NOT_RESPONSES = ["", "08 01", "12 02 0a 00", "0a", "0a 05 0a 01 78", "0a 03 0a 01 ff"]


@pytest.mark.parametrize(("golden", "request_"), GOLDEN)
def test_golden_requests(golden: str, request_: Request) -> None:
    assert zds.encode(request_) == bytes.fromhex(golden)
    assert zds.decode(bytes.fromhex(golden), int(isinstance(request_, Add))) == request_


def test_golden_hello_and_responses() -> None:
    assert zds.hello() == bytes.fromhex("08 01")
    assert zds.ack() == bytes.fromhex("0a 00")
    assert zds.nack("x") == bytes.fromhex("0a 03 0a 01 78")
    assert zds.read_response(bytes.fromhex("0a 00")) == ""
    assert zds.read_response(bytes.fromhex("0a 03 0a 01 78")) == "x"


@pytest.mark.parametrize(("message", "version"), [("08 01", 1), ("08 00", 0), ("08 07", 7)])
def test_a_hello_of_any_version_is_a_hello(message: str, version: int) -> None:
    assert zds.read_hello(bytes.fromhex(message)) == version


def test_what_is_no_hello() -> None:
    with pytest.raises(ProtocolError, match="not a Hello"):
        zds.read_hello(b"\x08")


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    """Before and behind what is known, and at every level of an Add."""
    info = field(1, b"n") + unknown + field(2, b"m") + field(3, b"s")
    inner = unknown + field(1, b"u") + unknown + field(2, info + unknown)
    expected = Add("u", WorkloadInfo("n", "m", "s"))
    assert zds.decode(unknown + field(1, inner) + unknown, 1) == expected
    assert zds.decode(field(5, field(1, b"u") + unknown) + unknown, 0) == Keep("u")
    assert zds.decode(unknown + field(2, unknown + field(2, b"u")), 0) == Del("u")
    assert zds.decode(field(3, unknown), 0) == SnapshotSent()
    assert zds.read_hello(unknown + bytes.fromhex("08 01") + unknown) == 1
    assert zds.read_response(unknown + field(1, unknown + field(1, b"x"))) == "x"


def test_a_retired_field_of_the_info_is_skipped() -> None:
    """Number 4 was the trust domain."""
    message = field(1, field(1, b"u") + field(2, field(1, b"n") + field(4, b"cluster.local")))
    assert zds.decode(message, 1) == Add("u", WorkloadInfo("n", "", ""))


def test_of_two_payloads_the_last_counts() -> None:
    assert zds.decode(bytes.fromhex("1a 00 2a 03 0a 01 75"), 0) == Keep("u")
    assert zds.decode(bytes.fromhex("2a 03 0a 01 75 1a 00"), 0) == SnapshotSent()


@pytest.mark.parametrize(("message", "descriptors", "why"), NOT_REQUESTS)
def test_what_is_no_request(message: str, descriptors: int, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        zds.decode(bytes.fromhex(message), descriptors)


@pytest.mark.parametrize(("golden", "request_"), GOLDEN)
def test_the_number_of_descriptors(golden: str, request_: Request) -> None:
    wanted = int(isinstance(request_, Add))
    for number in {0, 1, 2} - {wanted}:
        with pytest.raises(ProtocolError, match=f"with {number} descriptors where {wanted}"):
            zds.decode(bytes.fromhex(golden), number)


@pytest.mark.parametrize("message", NOT_RESPONSES)
def test_what_is_no_response(message: str) -> None:
    with pytest.raises(ProtocolError, match="WorkloadResponse"):
        zds.read_response(bytes.fromhex(message))


# ---- 1024 bytes ----------------------------------------------------------------------------------


def test_a_request_of_1024_bytes_goes_and_a_longer_one_does_not() -> None:
    fits = add_of_size(LIMIT)
    message = zds.encode(fits)
    assert len(message) == LIMIT
    assert zds.decode(message, 1) == fits
    with pytest.raises(ValueError, match="1025 bytes"):
        zds.encode(add_of_size(LIMIT + 1))
    with pytest.raises(ValueError, match="at most 1024"):
        zds.encode(Del("é" * 600))


@pytest.mark.parametrize(("size", "arrives"), [(LIMIT, True), (LIMIT + 1, False)])
def test_the_socket_holds_the_limit_where_we_read(size: int, arrives: bool) -> None:
    """A longer message is an error that takes its descriptor along; the next one is whole."""
    request = add_of_size(size)
    message = wire_add(b"u", request.info.name.encode())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_fds(theirs, message, [theirs])
        send_fds(theirs, zds.ack())
        if arrives:
            data, (fd,) = recv_fds(ours, zds.MAX_MESSAGE, 1, 5)
            with fd:
                assert zds.decode(data, 1) == request
        else:
            with pytest.raises(SyscallError) as caught:
                recv_fds(ours, zds.MAX_MESSAGE, 1, 5)
            assert caught.value.errno == errno.EMSGSIZE
        assert recv_fds(ours, zds.MAX_MESSAGE, 1, 5) == (zds.ack(), [])


# ---- the text of a refusal -----------------------------------------------------------------------

MOST = zds.MAX_NACK_TEXT

TEXTS = [
    ("why", "why"),
    ("", "refused"),  # without a text it would be an ACK
    ("x" * MOST, "x" * MOST),
    ("x" * (MOST + 1), "x" * MOST),
    ("x" * 5000, "x" * MOST),
    ("é" * 5000, "é" * (MOST // 2)),
    ("x" + "é" * 5000, "x" + "é" * ((MOST - 1) // 2)),
    ("€" * 5000, "€" * (MOST // 3)),
    ("xx" + "€" * 5000, "xx" + "€" * ((MOST - 2) // 3)),
    ("x" + "🙂" * 5000, "x" + "🙂" * ((MOST - 1) // 4)),
    ("xx" + "🙂" * 5000, "xx" + "🙂" * ((MOST - 2) // 4)),
    ("\udce9", "?"),  # of a path that is no UTF-8
    ("\udce9" * 5000, "?" * MOST),
    ("a\0b", "a\0b"),
]


def test_a_refusal_of_any_length_fits_into_the_buffer_of_the_other_side() -> None:
    assert MOST < 1000
    assert len(zds.nack("x" * 5000)) < LIMIT


@pytest.mark.parametrize(("text", "arrives"), TEXTS)
def test_refusals_are_clipped_between_two_characters(text: str, arrives: str) -> None:
    message = zds.nack(text)
    assert len(message) < LIMIT
    assert zds.read_response(message) == arrives


@given(text=st.text(st.characters(), max_size=1200))
@example("x" * 995 + "é")
@example("\ud800" * 1200)
def test_a_refusal_is_never_an_agreement_and_always_fits(text: str) -> None:
    message = zds.nack(text)
    assert len(message) < LIMIT
    assert message == field(1, field(1, zds.read_response(message).encode()))
    assert zds.read_response(message)


@given(text=st.text(st.characters(), max_size=60), size=st.integers(0, 200))
def test_clip_takes_as_much_as_fits(text: str, size: int) -> None:
    whole = text.encode("utf-8", "replace")
    clipped = zds.clip(text, size).encode()
    assert whole.startswith(clipped)
    assert len(clipped) <= size
    if len(whole) > size:
        assert len(clipped) > size - 4  # a character has at most 4 bytes
    else:
        assert clipped == whole


# ---- whatever comes ------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # 4 of them: 960 bytes
uids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
infos = st.builds(WorkloadInfo, texts, texts, texts)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(Add, uids, infos),
    st.builds(Keep, uids),
    st.builds(Del, uids),
    st.builds(SnapshotSent),
)


@given(request=requests)
def test_requests_go_round(request: Request) -> None:
    message = zds.encode(request)
    assert zds.decode(message, int(isinstance(request, Add))) == request
    if isinstance(request, Add):
        assert message == wire_add(request.uid.encode(), *(text.encode() for text in request.info))


@given(uid=st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3))
def test_what_utf8_cannot_carry_is_a_value_error(uid: str) -> None:
    for request in (Add(uid, WorkloadInfo("", "", "")), Keep(uid), Del(uid)):
        with pytest.raises(ValueError, match=r"surrogate|utf-8"):
            zds.encode(request)


broken = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda message, at, byte: message[:at] + bytes([byte]) + message[at + 1 :],
        st.sampled_from([bytes.fromhex(golden) for golden, _ in GOLDEN]),
        st.integers(0, 15),
        st.integers(0, 255),
    ),
    st.builds(
        lambda message, at: message[:at],
        st.sampled_from([bytes.fromhex(golden) for golden, _ in GOLDEN]),
        st.integers(0, 15),
    ),
)


@given(message=broken, descriptors=st.integers(0, 3))
@example(b"\x0b" * 200, 0)  # groups in groups
@example(b"\xff" * 11, 0)
def test_garbage_is_a_protocol_error_or_a_request(message: bytes, descriptors: int) -> None:
    with contextlib.suppress(ProtocolError):
        request = zds.decode(message, descriptors)
        assert isinstance(request, Add | Keep | Del | SnapshotSent)
        assert descriptors == isinstance(request, Add)
        assert isinstance(request, SnapshotSent) or request.uid
    with contextlib.suppress(ProtocolError):
        assert isinstance(zds.read_response(message), str)
    with contextlib.suppress(ProtocolError):
        assert isinstance(zds.read_hello(message), int)
