"""Runs pytest with a sanitized extension: `python pytest_sanitized.py KIND [ARGUMENT...]`.

KIND is address or thread. scripts/run-sanitized calls it, with the environment that loads the run
time of the sanitizer. Refuses to run what is not sanitized, and skips the tests of excluded.txt.
"""

import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RUNTIME = {"address": ("libasan", b"__asan_init"), "thread": ("libtsan", b"__tsan_init")}


@dataclass(frozen=True)
class Excluded:
    """One line of excluded.txt: what does not run under KINDS, and why."""

    kinds: frozenset[str]
    node: str
    reason: str

    def covers(self, nodeid: str) -> bool:
        return nodeid == self.node or nodeid.startswith((f"{self.node}[", f"{self.node}::"))


def parse(text: str) -> list[Excluded]:
    """Lines `KIND[,KIND] NODE REASON`; empty ones and those that begin with # say nothing."""
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        kinds, node, reason = line.split(maxsplit=2)
        if not set(kinds.split(",")) <= RUNTIME.keys():
            raise SystemExit(f"excluded.txt: no such kind: {line}")
        found.append(Excluded(frozenset(kinds.split(",")), node, reason))
    return found


def check(entry: Excluded, repository: Path) -> None:
    """An entry whose test was renamed would go unnoticed, and the next of that name be skipped."""
    place, _, name = entry.node.partition("::")
    path = repository / place
    if not path.is_file():
        raise SystemExit(f"excluded.txt: no such file: {place}")
    if name and re.search(rf"\bdef {re.escape(name)}\(", path.read_text()) is None:
        raise SystemExit(f"excluded.txt: no such test: {entry.node}")


def prove_instrumented(kind: str) -> None:
    """An extension without the sanitizer, or its run time without the extension, finds nothing."""
    # Not before pytest has begun: it rewrites the assertions of our plugin as that is imported.
    from pyztun import _core, _relay

    library, symbol = RUNTIME[kind]
    for module in (_core, _relay):
        file = Path(str(module.__file__))
        if symbol not in file.read_bytes():
            raise SystemExit(f"{file} was built without -fsanitize={kind}")
    if library not in Path("/proc/self/maps").read_text():
        raise SystemExit(f"{library} is not loaded: LD_PRELOAD is not set, or was not honoured")


class Plugin:
    """What is excluded is skipped, so that the summary names it with its reason."""

    def __init__(self, kind: str, entries: list[Excluded]) -> None:
        self._kind = kind
        self._entries = [entry for entry in entries if kind in entry.kinds]

    def pytest_sessionstart(self) -> None:
        prove_instrumented(self._kind)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for entry in self._entries:
                if entry.covers(item.nodeid):
                    item.add_marker(pytest.mark.skip(reason=f"not sanitized: {entry.reason}"))


def main(kind: str, arguments: list[str]) -> int:
    entries = parse((HERE / "excluded.txt").read_text())
    for entry in entries:
        check(entry, REPOSITORY)
    # TSan starts a thread of its own together with the first of the process: now, and not within a
    # test, whose leak it would seem to be.
    first = threading.Thread(target=int)
    first.start()
    first.join()
    return int(pytest.main(arguments, plugins=[Plugin(kind, entries)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
