"""The native reader of an Add takes nothing that protobuf would read otherwise.

It may leave a message to protobuf, and must where protobuf would have to be asked; what it takes is
compared with ``zds.decode()``, which has no code in common with it. What every writer of protobuf
makes of ASCII texts it must take, else an Add would be slow and nobody would notice.
"""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyztun import ProtocolError, waits
from pyztun.protocol import zds
from pyztun.protocol.zds import Add, WorkloadInfo

GOLDEN = bytes.fromhex("0a0e0a017512090a016e12016d1a0173")
MANY = settings(max_examples=600)


def read(message: bytes) -> Add | None:
    """As the native reader reads it."""
    texts = waits.read_add(message)
    if texts is None:
        return None
    uid, *info = (text.decode("ascii") for text in texts)
    return Add(uid, WorkloadInfo(*info))


def decode(message: bytes) -> zds.Request | None:
    """As protobuf reads it with one descriptor; None where that is a violation."""
    try:
        return zds.decode(message, 1)
    except ProtocolError:
        return None


def compare(message: bytes) -> None:
    """What is taken is read alike, and what is written the usual way is taken."""
    taken, meant = read(message), decode(message)
    if taken is not None:
        assert taken == meant
        assert len(message) <= zds.MAX_MESSAGE
    elif isinstance(meant, Add) and len(message) <= zds.MAX_MESSAGE:
        ascii_ = all(text.isascii() for text in (meant.uid, *meant.info))
        assert not ascii_ or zds.encode(meant) != message


# ---- what every writer makes ---------------------------------------------------------------------

# Also longer than 127 bytes, where a length takes two.
letters = st.characters(max_codepoint=127)
texts = st.one_of(
    st.text(letters, max_size=30),
    st.builds(
        lambda unit, size: (unit * size)[:size], st.text(letters, min_size=1), st.integers(0, 240)
    ),
)
infos = st.builds(WorkloadInfo, texts, texts, texts)
plain = st.builds(Add, texts.filter(bool), infos)


@MANY
@given(add=plain)
@example(Add("\0", WorkloadInfo("", "", "")))
@example(Add("\x7f" * 127, WorkloadInfo("\n" * 128, "\x12" * 127, "\x1a" * 128)))
def test_every_add_of_ascii_is_taken(add: Add) -> None:
    message = zds.encode(add)
    assert read(message) == add == decode(message)


def test_up_to_the_limit_and_no_further() -> None:
    """In each of its texts; where a longer message was cut, nothing of it is an Add."""
    seen = set()
    for size in range(980, zds.MAX_MESSAGE):
        for which in range(4):
            texts_ = ["u", "n", "m", "s"]
            texts_[which] *= size
            uid, *info = texts_
            try:
                message = zds.encode(Add(uid, WorkloadInfo(*info)))
            except ValueError:
                continue
            seen.add(len(message))
            assert read(message) == decode(message) is not None
            assert read(message + b"x") is None
            assert read(message[:-1]) is None
    assert max(seen) == zds.MAX_MESSAGE


def test_a_longer_one_is_left_to_whoever_refuses_it() -> None:
    for size in range(1000, 1100):
        message = wire_add(field(1, b"u"), field(1, b"n" * size))
        assert isinstance(decode(message), Add)
        assert (read(message) is not None) == (len(message) <= zds.MAX_MESSAGE)


# ---- what others may make ------------------------------------------------------------------------


def varint(number: int, padding: int = 0) -> bytes:
    """A number as protobuf writes it, with so many bytes more than it needs."""
    head = bytearray()
    while number > 0x7F or padding > 0:
        padding -= number <= 0x7F
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(head) + bytes([number])


def field(number: int, content: bytes, padding: int = 0) -> bytes:
    """A field of bytes: a text or a message."""
    return varint(number << 3 | 2) + varint(len(content), padding) + content


def wire_add(uid: bytes, *info: bytes) -> bytes:
    return field(1, uid + field(2, b"".join(info)))


# Mostly as usual: a message with more than one oddity tells no more than one with one.
paddings = st.sampled_from([0] * 14 + [1, 2])
unknown = st.sampled_from(
    [b""] * 16 + [b"\x38\x05", b"\x3d\0\0\0\0", b"\x39" + bytes(8), b"\x3b\x3c"]
)
usual = st.sampled_from([b"u", b"name", b"\x0a\x01u", b"\x12\x00", b"y" * 130, b""])
odd = st.sampled_from(["é".encode(), b"\xff", b""])
contents = st.one_of(usual, usual, usual, odd)
uids = st.builds(
    field, st.just(1), st.one_of(usual.filter(bool), usual.filter(bool), contents), paddings
)
leaves = st.builds(field, st.sampled_from([1, 2, 3]), usual, paddings)
others = st.builds(field, st.sampled_from([1, 2, 3, 4, 7]), contents, paddings)


def number_of(one: bytes) -> int:
    return one[0] >> 3


# Each at most once and by their numbers, as most writers have them; or anyhow.
in_order = st.lists(leaves, max_size=3, unique_by=number_of).map(
    lambda fields: sorted(fields, key=number_of)
)
several = st.one_of(in_order, in_order, in_order, st.lists(others, max_size=4))


@st.composite
def odd_adds(draw: st.DrawFn) -> bytes:
    """Fields twice, out of order, empty, with padded lengths, and unknown ones among them."""
    info = field(2, b"".join(draw(several)) + draw(unknown), draw(paddings))
    uid = draw(uids)
    orders = [[uid, info]] * 12 + [[info, uid], [uid, uid, info], [uid, info, info], [uid]]
    body = b"".join(draw(st.sampled_from(orders))) + draw(unknown)
    add = field(1, body, draw(paddings))
    return draw(unknown) + add * draw(st.sampled_from([1] * 9 + [2])) + draw(unknown)


@MANY
@given(message=odd_adds())
@example(wire_add(field(1, b"u"), field(1, b""), field(2, b""), field(3, b"")))
@example(wire_add(field(1, b"u"), field(1, b"n"), field(1, b"o")))
@example(wire_add(field(1, b"u"), field(3, b"s"), field(2, b"m")))
@example(wire_add(field(1, b"u"), field(1, b"n"), field(4, b"cluster.local")))
@example(wire_add(field(1, b"u", 1), field(1, b"n", 2)))
@example(wire_add(field(1, "é".encode())))
@example(wire_add(field(1, b"\xff")))
@example(wire_add(field(1, b"")))
@example(GOLDEN * 2)
@example(GOLDEN + b"\x1a\x00")
def test_other_ways_to_write_one(message: bytes) -> None:
    compare(message)


@st.composite
def changed_adds(draw: st.DrawFn) -> bytes:
    """A plain Add with a few bytes replaced, put in, taken out or repeated."""
    message = bytearray(draw(st.one_of(st.just(GOLDEN), plain.map(zds.encode))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(message)))
        until = draw(st.integers(at, min(len(message), at + 6)))
        new = draw(st.one_of(st.binary(max_size=2), st.just(bytes(message[at:until]) * 2)))
        message[at:until] = new
    return bytes(message)


@MANY
@given(message=changed_adds())
def test_changed_bytes_are_never_taken_for_something_else(message: bytes) -> None:
    compare(message)


def test_every_change_of_one_byte() -> None:
    for at in range(len(GOLDEN)):
        compare(GOLDEN[:at])
        compare(GOLDEN[:at] + GOLDEN[at + 1 :])
        for byte in range(256):
            compare(GOLDEN[:at] + bytes([byte]) + GOLDEN[at + 1 :])
            compare(GOLDEN[:at] + bytes([byte]) + GOLDEN[at:])


@MANY
@given(message=st.binary(max_size=60))
@example(b"")
@example(zds.encode(zds.Keep("u")))
@example(zds.encode(zds.Del("u")))
@example(zds.encode(zds.SnapshotSent()))
@example(zds.hello())
def test_whatever_comes(message: bytes) -> None:
    compare(message)
