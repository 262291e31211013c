"""docs/library.md: every block on that page runs, in its order, in one process.

The names of the page (ns2, ...) live in a mount namespace of their own, so that those of the
machine are neither seen nor touched.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import REPOSITORY

README = REPOSITORY / "README.md"
PAGE = REPOSITORY / "docs" / "library.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRIVATE_RUN = 'mount -t tmpfs -o mode=0755 tmpfs /run; exec "$@"'

RUNNER = """
import sys
page, *lines = sys.argv[1:]
text = open(page).read().splitlines()
names = {"__name__": "__main__"}
for first, last in (map(int, line.split("-")) for line in lines):
    block = "\\n" * first + "\\n".join(text[first:last])
    exec(compile(block, page, "exec"), names)
    print(f"ran {first + 1}-{last}", flush=True)
"""


def blocks(language: str) -> list[tuple[int, int]]:
    """The lines of each block of a language: index of the first, index behind the last."""
    text = PAGE.read_text()
    found = []
    for match in FENCE.finditer(text):
        if match[1] == language:
            first = text[: match.start(2)].count("\n")
            found.append((first, first + match[2].count("\n")))
    return found


def lines_of(block: tuple[int, int]) -> str:
    return "\n".join(PAGE.read_text().splitlines()[slice(*block)]) + "\n"


@pytest.mark.needs_named_netns
def test_every_block_runs(tmp_path: Path) -> None:
    setup = "".join(map(lines_of, blocks("sh")))
    script = tmp_path / "blocks.py"
    script.write_text(RUNNER)
    python = [sys.executable, str(script), str(PAGE), *(f"{a}-{b}" for a, b in blocks("python"))]
    inside = f'set -e\n{setup}exec "$@"'
    argv = ["unshare", "--mount", "sh", "-ec", PRIVATE_RUN, "sh", "sh", "-c", inside, "sh", *python]
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as to_out, err.open("wb") as to_err:
        # A session of its own: whatever a failing block has started ends with it.
        page = subprocess.Popen(argv, stdout=to_out, stderr=to_err, cwd="/", start_new_session=True)
        try:
            code = page.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(page.pid, signal.SIGKILL)
            page.wait()
    complaints = [line for line in err.read_text().splitlines() if '"GET / HTTP' not in line]
    assert (code, complaints) == (0, [])
    ran = [line for line in out.read_text().splitlines() if line.startswith("ran ")]
    assert ran == [f"ran {first + 1}-{last}" for first, last in blocks("python")]


@pytest.mark.needs_netns
def test_the_block_of_the_readme_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    argv = [sys.executable, "-c", block]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert "laddr=('127.0.0.1', 8080)" in done.stdout


def test_the_page_has_the_lines_that_were_promised() -> None:
    """The example of the design, statement by statement."""
    text = "".join(map(lines_of, blocks("python")))
    for line in (
        'with NetNs.from_name("ns2") as pod:',
        'a, b = pod.listen(("127.0.0.1", 15008), ("::1", 15008), backlog=128, reuse_port=True)',
        'u, = pod.listen(("127.0.0.1", 5353), type=socket.SOCK_DGRAM)',
        'c = pod.connect(("10.0.0.1", 80), timeout=5, source=("10.0.0.2", 0), mark=0x539)',
        "n = pod.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        's = pyztun.listen(("0.0.0.0", 8080), netns="ns2")',
        'assert pyztun.socket_netns(s).cookie == NetNs.from_name("ns2").cookie',
        'server = await pyztun.start_server(handler, "127.0.0.1", 9000, netns="ns2")',
        'reader, writer = await pyztun.open_connection("127.0.0.1", 9000, netns="ns2")',
        "with NetNs.create() as lab:",
    ):
        assert line in text


def test_every_test_of_the_table_exists() -> None:
    named = set(re.findall(r"`(test_\w+)` \|", PAGE.read_text()))
    source = (REPOSITORY / "tests/library/test_other_ways.py").read_text()
    assert named == set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE))
