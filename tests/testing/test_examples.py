"""The example project, copied and run by plain `pytest`, as whoever we are and as an ordinary user.

The copy is what a stranger has: the tree around it is not there.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest

from support import REPOSITORY
from support.project import Project, Run

EXAMPLE = REPOSITORY / "examples" / "health"
NO_CACHES = shutil.ignore_patterns("__pycache__", ".*_cache", "*.egg-info")


@pytest.fixture
def example(shared_directory: Path) -> Project:
    """A copy of the example that any user may read."""
    return Project(shutil.copytree(EXAMPLE, shared_directory / "health", ignore=NO_CACHES))


def script() -> list[str]:
    """The command `pytest` of this environment."""
    return [str(Path(sys.executable).with_name("pytest"))]


def passed(run: Run) -> bool:
    """Whether all tests passed, none skipped."""
    return run.status == 0 and re.fullmatch(r"\d+ passed", run.outcome) is not None


@pytest.mark.needs_netns
def test_example_passes_as_root(example: Project) -> None:
    run = example.run(command=script())
    assert passed(run), run.text
    assert not run.told("^pyztun:")


@pytest.mark.needs_userns
def test_example_passes_as_an_ordinary_user(example: Project, stranger: list[str]) -> None:
    run = example.run(command=script(), wrap=stranger)
    assert passed(run), run.text
    assert run.told("^pyztun: .*runs again")


@pytest.mark.needs_netns
def test_example_notices_a_leak(example: Project) -> None:
    """A service that forgets its listener: the check is really on."""
    service = example.directory / "podhealth" / "service.py"
    text = service.read_text()
    assert "self._listener.close()" in text
    text = text.replace("self._listener.close()", "KEPT.append(self)")
    service.write_text(f"{text}\nKEPT = []\n")
    run = example.run("tests/test_service.py::test_healthy")
    assert (run.status, run.outcome) == (1, "1 passed, 1 error"), run.text
    assert run.told(r"^left behind: fd \d+ -> socket:.* 127.0.0.1:80, in netns \d+\)$"), run.text
