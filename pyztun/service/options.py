"""Types of options that the services share, for argparse."""

from __future__ import annotations

import argparse
import grp

MAX_NUMBER_DIGITS = 10
MAX_ID = 2**32 - 2
"""Of uids and gids; 2**32 - 1 means nobody to the kernel."""
PERMISSION_BITS = 0o777


class Number:
    """A decimal number within bounds."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        # The length first: int() refuses thousands of digits with another error.
        short = text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS
        if not (short and self._low <= int(text) <= self._high):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number in {self._low}..{self._high}"
            )
        return int(text)


def mode(text: str) -> int:
    """Permission bits in octal."""
    try:
        bits = int(text, 8)
    except ValueError:
        bits = -1
    if bits & ~PERMISSION_BITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode such as 0660")
    return bits


def group(text: str) -> int:
    """A group by name or number; the gid."""
    if text.isascii() and text.isdigit():
        return Number(0, MAX_ID)(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no group {text!r}") from None
