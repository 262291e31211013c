"""The frame of netlink messages: what we write is read back, and no length leads us astray."""

import errno
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from pyztun.protocol import netlink

kinds = st.integers(0, 0xFFFF)
bodies = st.binary(max_size=40)


def padded(message: bytes) -> bytes:
    return message + bytes(-len(message) % 4)


@given(st.lists(st.tuples(kinds, bodies)))
def test_what_is_written_is_read(wanted: list[tuple[int, bytes]]) -> None:
    datagram = b"".join(padded(netlink.request(kind, 0, body)) for kind, body in wanted)
    found = list(netlink.messages(datagram))
    assert [(each.kind, each.body) for each in found] == wanted
    for each in found:
        assert datagram[each.start :].startswith(netlink.request(each.kind, 0, each.body))


@given(st.lists(st.tuples(kinds, bodies)))
def test_attributes_that_are_written_are_read(wanted: list[tuple[int, bytes]]) -> None:
    body = b"".join(netlink.attribute(*each) for each in wanted)
    assert len(body) % 4 == 0
    assert list(netlink.attributes(body)) == wanted


@given(st.binary(max_size=200))
def test_any_bytes_end_and_are_their_own(noise: bytes) -> None:
    """Lengths of nothing, and beyond the end."""
    for message in netlink.messages(noise):
        assert message.body in noise
        assert isinstance(message.error, int)
    for _, value in netlink.attributes(noise):
        assert value in noise


def test_errors() -> None:
    refused = struct.pack("=i", -errno.EPERM) + bytes(16)
    rows = {b"": 0, b"\xff\xff\xff": 0, bytes(4): 0, refused: errno.EPERM}
    for body, wanted in rows.items():
        (message,) = netlink.messages(netlink.request(netlink.ERROR, 0, body))
        assert message.error == wanted


def test_the_kernel_understands_it() -> None:
    """RTM_GETLINK of lo; and of an interface that nobody has."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for name, wanted in ((b"lo\0", 0), (b"none-of-ours\0", errno.ENODEV)):
            body = bytes(16) + netlink.attribute(3, name)  # struct ifinfomsg, IFLA_IFNAME
            sock.send(netlink.request(18, 0, body))
            (answer,) = netlink.messages(sock.recv(netlink.LONGEST))
            if wanted:
                assert (answer.kind, answer.error) == (netlink.ERROR, wanted)
            else:
                assert dict(netlink.attributes(answer.body[16:]))[3] == name
