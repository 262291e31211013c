"""The command line of the one-shot sender: words in, one immutable object out.

Parsed by hand, since importing argparse takes longer than the handoff. Pure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SUBCOMMANDS = ("agent", "add", "del", "list", "status", "watch")
"""First words that are commands of the long-lived agent; a socket of that name is ./add."""

BUILT = ("agent", "add", "del", "list", "status")

MAX_TIMEOUT = 86400.0


class UsageError(Exception):
    """The command line makes no sense; the text says which word."""


class Asked:
    """What the command line asks for; never changed after parsing.

    :ivar action: take, release, list, help or version.
    :ivar references: the NETNS words, in order.
    :ivar timeout: seconds for connecting, and for each answer.
    """

    __slots__ = ("action", "references", "require_ready", "socket", "timeout", "verbose")

    action: str
    socket: str
    references: tuple[str, ...]
    timeout: float
    require_ready: bool
    verbose: bool

    def __init__(
        self,
        action: str,
        socket: str = "",
        references: tuple[str, ...] = (),
        timeout: float = 2.0,
        require_ready: bool = False,
        verbose: bool = False,
    ) -> None:
        values = (action, socket, references, timeout, require_ready, verbose)
        names = ("action", "socket", "references", "timeout", "require_ready", "verbose")
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings do not change ({name})")


def parse(words: Sequence[str]) -> Asked:
    """Reads the words behind the program name. Options may stand anywhere; `--` ends them."""
    if words and words[0] in SUBCOMMANDS:
        why = "goes to the agent" if words[0] in BUILT else "is not built yet"
        raise UsageError(
            f"the subcommand {words[0]!r} {why}; a socket of that name is ./{words[0]}"
        )
    flags: dict[str, bool] = {}
    timeout = 2.0
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            rest += queue
            break
        if name == "--timeout":
            if not equals and not queue:
                raise UsageError("--timeout needs a number of seconds")
            timeout = seconds(value if equals else queue.pop(0))
        elif word in ("-h", "--help", "--version"):
            return Asked("version" if word == "--version" else "help")
        elif word in ("-v", "--verbose", "--release", "--list", "--require-ready"):
            flags["--verbose" if word == "-v" else word] = True
        elif word.startswith("-") and word != "-":
            raise UsageError(f"unknown option {word}")
        else:
            rest.append(word)
    return _combine(flags, timeout, rest)


def _combine(flags: dict[str, bool], timeout: float, rest: list[str]) -> Asked:
    release, listing = "--release" in flags, "--list" in flags
    if release and listing:
        raise UsageError("--release and --list exclude each other")
    if not rest:
        raise UsageError("SOCKET is missing, or a command: agent, add, del, list, status")
    if not rest[0]:
        raise UsageError("SOCKET is empty")
    if listing and len(rest) > 1:
        raise UsageError(f"--list takes no NETNS ({rest[1]!r})")
    if not listing and len(rest) == 1:
        commands = "" if "/" in rest[0] else f"; commands are {', '.join(BUILT)}"
        raise UsageError(f"NETNS is missing{commands}")
    for reference in rest[1:]:
        _check_reference(reference, release)
    return Asked(
        "release" if release else "list" if listing else "take",
        rest[0],
        tuple(rest[1:]),
        timeout,
        "--require-ready" in flags,
        "--verbose" in flags,
    )


def _check_reference(reference: str, release: bool) -> None:
    kind, colon, number = reference.partition(":")
    if not reference:
        raise UsageError("an empty word is not a NETNS")
    if not colon or "/" in kind or kind not in ("pid", "fd", "cookie"):
        return
    if kind == "cookie" and not release:
        raise UsageError(f"{reference}: a cookie names a netns only for --release")
    if not (number.isascii() and number.isdigit() and len(number) <= 20):  # noqa: PLR2004  64 bits
        raise UsageError(f"{reference}: {kind}:N needs a number")
    if kind == "cookie" and int(number) >= 2**64:
        raise UsageError(f"{reference}: a cookie has 64 bits")
    if kind != "cookie" and int(number) >= 2**31:
        raise UsageError(f"{reference}: no such {kind}")


def seconds(text: str, most: float = MAX_TIMEOUT) -> float:
    """The value of `--timeout`. UsageError."""
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"--timeout {text}: not a number of seconds") from None
    if not 0 < value <= most:
        raise UsageError(f"--timeout {text}: must be more than 0 and at most {most:.0f} seconds")
    return value
