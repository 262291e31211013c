"""The seed form's bytes, without any I/O: tables, round trips, and whatever a peer may say."""

import contextlib
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyztun.errors import ProtocolError
from pyztun.protocol import seed

cookies = st.integers(0, seed.MAX_COOKIE)
address = st.text(string.ascii_letters + string.digits + ".:[]", min_size=1, max_size=30)
addresses = st.lists(address, min_size=1, max_size=8).map(" ".join)

REQUESTS = [
    (seed.TAKE, b"\x01"),
    (seed.RELEASE, b"\x02"),
    (seed.LIST, b"\x04"),
    (seed.release_cookie(0), b"\x030\n"),
    (seed.release_cookie(4133), b"\x034133\n"),
    (seed.release_cookie(2**64 - 1), b"\x0318446744073709551615\n"),
]

ANSWERS = [
    (
        seed.ready("127.0.0.1:15008 127.0.0.1:15006 127.0.0.1:15001", 4133),
        b"ready 127.0.0.1:15008 127.0.0.1:15006 127.0.0.1:15001 netns=4133\n",
    ),
    (seed.ready("[::1]:15008", 1), b"ready [::1]:15008 netns=1\n"),
    (seed.released(7), b"released netns=7\n"),
    (seed.held("127.0.0.1:15008", 7), b"held 127.0.0.1:15008 netns=7\n"),
    (seed.end(), b"end\n"),
    (seed.error("home netns"), b"error home netns\n"),
    (seed.error("two\nlines\tand  blanks "), b"error two lines and blanks\n"),
    (seed.error(""), b"error \n"),
]

PARSED: list[tuple[bytes, str, tuple[str, ...], int, str]] = [
    (b"ready a:1 b:2 netns=3\n", "ready", ("a:1", "b:2"), 3, ""),
    (b"held a:1 netns=18446744073709551615\n", "held", ("a:1",), 2**64 - 1, ""),
    (b"released netns=0\n", "released", (), 0, ""),
    (b"end\n", "end", (), 0, ""),
    (b"end", "end", (), 0, ""),
    (b"error home netns\n", "error", (), 0, "home netns"),
    (b"error\n", "error", (), 0, "no reason given"),
    (b"error \n", "error", (), 0, "no reason given"),
    (b"error \x1b[31mred\x07\n", "error", (), 0, "?[31mred?"),
    (b"error \xff\xfe\n", "error", (), 0, "\ufffd\ufffd"),
    (b"error \xe2\x80\xae\n", "error", (), 0, "?"),  # U+202E turns the text around
    (b"ready \x1b]0;x\x07 netns=3\n", "ready", ("?]0;x?",), 3, ""),
]

NOT_ANSWERS = [
    b"",
    b"\n",
    b"ready\n",
    b"ready netns=3\n",
    b"ready a:1\n",
    b"ready a:1 netns=\n",
    b"ready a:1 netns=-1\n",
    b"ready a:1 netns=+1\n",
    b"ready a:1 netns=0x1\n",
    b"ready a:1 netns=1 \n",
    b"ready a:1  netns=1\n",
    b"ready  netns=1\n",
    b"ready a:1 netns=18446744073709551616\n",
    b"ready a:1 netns=\xd9\xa3\n",  # a digit, but not an ASCII one
    b"ready a:1 netns=\xc2\xb3\n",
    b"ready a:1 NETNS=3\n",
    b"READY a:1 netns=3\n",
    b" ready a:1 netns=3\n",
    b"released a:1 netns=3\n",
    b"released\n",
    b"held netns=3\n",
    b"end of it\n",
    b"end \n",
    b"errors x\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    b"\x00\x01\x02",
    b"ok\n",
]


@pytest.mark.parametrize(("made", "expected"), REQUESTS + ANSWERS)
def test_bytes_on_the_wire(made: bytes, expected: bytes) -> None:
    assert made == expected


@pytest.mark.parametrize("cookie", [-1, 2**64])
def test_a_cookie_that_does_not_fit(cookie: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        seed.release_cookie(cookie)


@pytest.mark.parametrize(("line", "kind", "listeners", "cookie", "reason"), PARSED)
def test_answers_are_read(
    line: bytes, kind: str, listeners: tuple[str, ...], cookie: int, reason: str
) -> None:
    answer = seed.parse(line)
    found = (answer.kind, answer.addresses, answer.cookie, answer.reason)
    assert found == (kind, listeners, cookie, reason)


@pytest.mark.parametrize("line", NOT_ANSWERS)
def test_anything_else_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        seed.parse(line)


def test_a_cookie_of_five_thousand_digits_is_a_protocol_error() -> None:
    """int() itself raises ValueError beyond 4300 digits."""
    with pytest.raises(ProtocolError):
        seed.parse(b"ready a:1 netns=" + b"1" * 5000 + b"\n")


@given(addresses, cookies)
def test_ready_and_held_round_trip(listeners: str, cookie: int) -> None:
    for kind, make in (("ready", seed.ready), ("held", seed.held)):
        answer = seed.parse(make(listeners, cookie))
        assert (answer.kind, " ".join(answer.addresses), answer.cookie) == (kind, listeners, cookie)


@given(cookies)
def test_released_round_trips(cookie: int) -> None:
    answer = seed.parse(seed.released(cookie))
    assert (answer.kind, answer.addresses, answer.cookie) == ("released", (), cookie)


@given(st.text(max_size=3000))
@example("\ud800")
@example("ä" * 600)
def test_a_reason_is_one_bounded_readable_line(reason: str) -> None:
    made = seed.error(reason)
    assert made.count(b"\n") == 1
    assert made.endswith(b"\n")
    assert len(made) <= len(b"error \n") + seed.MAX_REASON
    made.decode("utf-8")
    answer = seed.parse(made)
    assert answer.kind == seed.ERROR
    assert answer.reason.isprintable()


@given(st.binary(max_size=400))
@example(b"ready \xff netns=1\n")
def test_no_peer_can_make_parse_raise_anything_else(line: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        check_is_sound(seed.parse(line))


WORDS = st.sampled_from(
    ["ready", "released", "held", "end", "error", "netns=", "netns=1", "=", " ", "\x1b", "9" * 30]
)


@given(st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=12).map(" ".join))
def test_nearly_right_lines(line: str) -> None:
    with contextlib.suppress(ProtocolError):
        check_is_sound(seed.parse(line.encode("utf-8", "surrogatepass")))


def check_is_sound(answer: seed.Answer) -> None:
    """Whatever was accepted may be shown on a terminal and fits the documented form."""
    assert answer.kind in ("ready", "released", "held", "end", "error")
    assert 0 <= answer.cookie <= seed.MAX_COOKIE
    assert all(word and word.isprintable() for word in answer.addresses)
    assert answer.reason.isprintable()
    assert bool(answer.addresses) == (answer.kind in ("ready", "held"))


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    shown = seed.printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)


def test_the_longest_real_answer_fits_into_a_line() -> None:
    """64 listeners with the longest addresses: an IPv6 address with an interface index."""
    longest = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%4294967295]:65535"
    assert len(seed.held(" ".join([longest] * 64), seed.MAX_COOKIE)) <= seed.MAX_LINE
