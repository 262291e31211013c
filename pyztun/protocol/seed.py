"""The seed form: one-byte requests on a Unix stream, one-line answers. See docs/protocol.md.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

from pyztun.errors import ProtocolError

TAKE = b"\x01"
RELEASE = b"\x02"
RELEASE_COOKIE = b"\x03"
LIST = b"\x04"

MAX_COOKIE = 2**64 - 1
MAX_COOKIE_DIGITS = 20
MAX_LINE = 16384
"""Bytes of one answer: 64 listeners of at most 60 bytes, a cookie, and room."""
MAX_HELD = 1_000_000
"""Lines of one answer to LIST: each is a netns, and no machine has more."""
MAX_REASON = 1000
"""Bytes of a reason; longer ones are clipped."""

READY, RELEASED, HELD, END, ERROR = "ready", "released", "held", "end", "error"


def release_cookie(cookie: int) -> bytes:
    """The request that releases a netns by its cookie."""
    if not 0 <= cookie <= MAX_COOKIE:
        raise ValueError(f"a netns cookie has 64 bits, {cookie} does not fit")
    return b"%b%d\n" % (RELEASE_COOKIE, cookie)


def ready_without_cookie(addresses: str) -> bytes:
    """What the answers to TAKE have in common: the cookie and a newline follow.

    :param addresses: ``ADDR:PORT``, separated by blanks.
    """
    return f"{READY} {addresses} netns=".encode()


def ready(addresses: str, cookie: int) -> bytes:
    """The answer to TAKE."""
    return b"%b%d\n" % (ready_without_cookie(addresses), cookie)


def released(cookie: int) -> bytes:
    """The answer to both releases, also when the netns was not held."""
    return f"{RELEASED} netns={cookie}\n".encode()


def held(addresses: str, cookie: int) -> bytes:
    """One line of the answer to LIST."""
    return f"{HELD} {addresses} netns={cookie}\n".encode()


def end() -> bytes:
    """The last line of the answer to LIST."""
    return f"{END}\n".encode()


def error(reason: str) -> bytes:
    """A refusal. The reason is clipped and kept to one line."""
    flat = " ".join(reason.split()).encode("utf-8", "backslashreplace")[:MAX_REASON]
    return f"{ERROR} ".encode() + flat.decode("utf-8", "ignore").encode() + b"\n"


class Answer:
    """One parsed answer line.

    :ivar kind: READY, RELEASED, HELD, END or ERROR.
    :ivar addresses: the listeners, as written, of READY and HELD.
    :ivar cookie: of READY, RELEASED and HELD; 0 otherwise.
    :ivar reason: of ERROR.
    """

    __slots__ = ("addresses", "cookie", "kind", "reason")

    def __init__(
        self, kind: str, addresses: tuple[str, ...] = (), cookie: int = 0, reason: str = ""
    ) -> None:
        self.kind, self.addresses, self.cookie, self.reason = kind, addresses, cookie, reason


def parse(line: bytes) -> Answer:
    """Reads one answer line. ProtocolError for anything that is none."""
    text = line.decode("utf-8", "replace").rstrip("\n")
    kind, _, rest = text.partition(" ")
    if kind == ERROR:
        return Answer(ERROR, reason=printable(rest) or "no reason given")
    if text == END:
        return Answer(END)
    words = rest.split(" ")
    label, _, digits = words[-1].partition("=")
    if label == "netns" and _is_cookie(digits):
        addresses = tuple(printable(word) for word in words[:-1])
        if (kind in (READY, HELD) and all(addresses) and addresses) or (
            kind == RELEASED and not addresses
        ):
            return Answer(kind, addresses, int(digits))
    raise ProtocolError(f"not an answer of the seed form: {printable(text[:80])!r}")


def _is_cookie(digits: str) -> bool:
    # The length first: int() refuses a string of more than 4300 digits with a ValueError.
    decimal = digits.isascii() and digits.isdigit() and len(digits) <= MAX_COOKIE_DIGITS
    return decimal and int(digits) <= MAX_COOKIE


def printable(text: str) -> str:
    """The text with every control character replaced, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
