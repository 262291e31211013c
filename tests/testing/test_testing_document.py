"""docs/testing.md: the test files on that page, each run by pytest as a project of its own."""

import re
import sys
from pathlib import Path

import pytest

from support import REPOSITORY
from support.programs import run_program
from support.project import Project

PAGE = REPOSITORY / "docs" / "testing.md"
FILES = {
    name: text
    for text, name in re.findall(
        r"^```python\n(# (test_\w+\.py)\n.*?)^```$", PAGE.read_text(), re.M | re.S
    )
}


def passes(project: Project, name: str, count: int) -> None:
    project.write(name, FILES[name])
    run = project.run("-o", "pyztun_leak_check=true", name, PATH=path())
    assert (run.status, run.outcome) == (0, f"{count} passed"), run.text


def path() -> str:
    """The commands of this environment first."""
    return f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"


def test_the_page_has_both() -> None:
    assert set(FILES) == {"test_ztunnel.py", "test_agent.py"}


@pytest.mark.needs_netns
def test_a_ztunnel_under_test(project: Project) -> None:
    passes(project, "test_ztunnel.py", 5)


@pytest.mark.needs_netns
def test_an_agent_under_test(project: Project) -> None:
    if run_program("pyztun-cni", "agent", "--help").returncode != 0:
        pytest.skip("pyztun-cni agent is not built yet")
    passes(project, "test_agent.py", 3)
