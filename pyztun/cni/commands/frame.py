"""What the four commands have in common: their words, their errors, their exit status."""

from __future__ import annotations

import os

from pyztun.cni.arguments import UsageError
from pyztun.cni.commands import words as words_
from pyztun.cni.commands.client import Refused
from pyztun.cni.commands.text import shown
from pyztun.cni.output import complain, tell
from pyztun.errors import PyztunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyztun.cni.commands.words import Given

DONE, FAILED, USAGE, UNCONFIRMED = 0, 1, 2, 3


def run(
    name: str,
    help_text: str,
    words: Sequence[str],
    check: Callable[[Given], None],
    act: Callable[[Given, str, float], int],
    options: Sequence[str] = (),
) -> int:
    """Runs one command; returns its exit status. OSError of stdout alone.

    :param words: those behind the command's name.
    :param check: UsageError where the words make no sense.
    :param act: is given the words, the agent's socket and the timeout.
    """
    try:
        given = words_.read(words, options)
        if given.wants_help:
            tell(help_text.rstrip())
            return DONE
        check(given)
        control, timeout = given.control(os.environ), given.timeout
    except UsageError as error:
        complain(shown(f"{name}: {error} (try pyztun-cni {name} --help)"))
        return USAGE
    try:
        return act(given, control, timeout)
    except Refused as refused:
        return fail(refused.reason)
    except PyztunError as error:
        return fail(str(error))


def fail(reason: str) -> int:
    """One line on stderr; the status of a failure."""
    complain(shown(reason))
    return FAILED
