"""`pyztun netns ls --json`, run and taken apart."""

import json
import os
from collections.abc import Sequence
from typing import Any

from support.programs import run_program

ME = os.getpid()


class Listing:
    """One run of the command, behind the command prefix WRAP; it has to succeed."""

    def __init__(self, wrap: Sequence[str] = ()) -> None:
        done = run_program("pyztun", "netns", "ls", "--json", wrap=wrap)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        self.text = done.stdout
        self.whole: dict[str, Any] = json.loads(done.stdout)
        self.netns: list[dict[str, Any]] = self.whole["netns"]
        self.unreadable: list[dict[str, Any]] = self.whole["unreadable"]

    def find(self, cookie: int) -> dict[str, Any] | None:
        """The entry of a netns, None if there is none; there is never more than one."""
        found = [each for each in self.netns if each["cookie"] == cookie]
        assert len(found) <= 1
        return found[0] if found else None

    def one(self, cookie: int) -> dict[str, Any]:
        """The entry of a netns, which has to be there."""
        found = self.find(cookie)
        assert found is not None, f"no netns {cookie}"
        return found

    def reasons(self, what: str) -> str:
        """Why something of that kind could not be read."""
        return "; ".join(each["why"] for each in self.unreadable if what in each["what"])


def pin(kind: str, **others: Any) -> dict[str, Any]:
    """An entry of pinned_by."""
    return {"pid": None, "fd": None, "tid": None, "path": None, "kind": kind, **others}


def pins_of(entry: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The entries of one kind in pinned_by."""
    return [each for each in entry["pinned_by"] if each["kind"] == kind]
