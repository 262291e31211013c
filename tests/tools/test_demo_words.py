"""The words of the demo do not go stale: every file and function that they name is there."""

import ast
import re

import pytest

from pyztun.tools import capture_script, drawings, seed_script, zds_script
from support import REPOSITORY

SCRIPTS = (seed_script.SCRIPT, zds_script.SCRIPT, capture_script.SCRIPT)
STEPS = [step for script in SCRIPTS for step in script.steps]
PLACES = sorted({place for step in STEPS for place in step.places})
BIG = 2**32


def functions_of(path: str) -> set[str]:
    """The functions that a file defines: methods too, but not what a C file only declares."""
    text = (REPOSITORY / path).read_text()
    if path.endswith(".py"):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)}
    return set(re.findall(r"^(?:\w[\w ]*[ *])(\w+)\([^;{]*\)\n\{", text, re.MULTILINE))


def test_every_step_names_its_code() -> None:
    assert all(step.places for step in STEPS)


@pytest.mark.parametrize("place", PLACES)
def test_place_exists(place: str) -> None:
    named = re.fullmatch(r"(\S+): (\w+)\(\)", place)
    assert named
    assert named[2] in functions_of(named[1])


def test_place_that_is_gone_is_noticed() -> None:
    assert "go_and_return" in functions_of("csrc/visit.c")
    assert "setns" not in functions_of("csrc/visit.c")
    assert "pz_in_helper_thread" not in functions_of("csrc/netns_create.c")
    assert "Receiver" not in functions_of("pyztun/ztunnel/receiver.py")


def test_documents_that_it_recommends_exist() -> None:
    paths = [path for each in SCRIPTS for path in re.findall(r"docs/[\w.-]*\w", each.closing)]
    assert len(paths) > 2
    for path in paths:
        assert (REPOSITORY / path).is_file()


def test_drawings_with_large_numbers_fit() -> None:
    cookie = 10**8
    rows = [(f"  fd {10**5}", f"LISTEN 127.0.0.1:15008  (socket {BIG})")] * 3
    pid = 2**22
    drawn = [
        *drawings.cast(cookie, [("web", cookie), ("db", cookie)]),
        *drawings.passing(
            f"pyztun-cni, pid {pid}",
            f"fd {10**5}",
            f"pyztun-ztunnel, pid {pid}",
            f"fd {10**5}",
            f"web, netns {cookie}",
        ),
        *drawings.node(cookie, [("web", cookie), ("db", cookie), ("cache", cookie)]),
        *drawings.bridged([("web", cookie), ("cache", cookie)], ("10.0.0.1", "10.0.0.2")),
        *drawings.tied(f"home, netns {cookie}", f"web, netns {cookie}", rows),
        *drawings.table(("cookie of", "before", "during"), [("ztunnel", cookie, cookie)]),
    ]
    assert max(map(len, drawn)) <= 96


def test_boxes_are_closed() -> None:
    title, border, *rows, last = drawings.tied(
        "home", "a pod with a title", [("ztunnel", ""), ("fd 3", "x"), ("", "nothing")]
    )
    assert border == last
    assert {len(border)} == {len(row) for row in rows}
    assert [border.index("+", 1), border.rindex("+")] == [rows[0].index("|", 1), len(border) - 1]
    assert rows[1].index(">|") == border.rindex("+", 0, -1) - 1
    assert title.startswith(" home ")
