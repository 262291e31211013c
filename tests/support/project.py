"""A stranger's project: a directory with test files, and pytest run in it as a process.

Not pytest's own `pytester`: it drops from sys.modules whatever a test imported, under objects that
are still used, and its directory can be read by one user only.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import privilege

FOREIGN = re.compile(r"PYTEST|PYZTUN|CI$|NO_COLOR|COLUMNS|(LOGNAME|USER|LNAME|USERNAME)$")
IN_DIRECTORY = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh"]
PYTEST = [sys.executable, "-m", "pytest"]
QUIET = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]


def ordinary_user() -> list[str]:
    """A command prefix: somebody who may make a user namespace and nothing else.

    Where root has no other uid to become, in a user namespace, it is uid 0 without capabilities,
    but for the one that mapping uid 0 into a further namespace takes (user_namespaces(7)).
    """
    prefix = privilege.no_capability()
    if not prefix and os.geteuid() == 0:
        return ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+setfcap"]
    return prefix


@dataclass(frozen=True)
class Run:
    """How a run of pytest ended and what it said, standard error after standard output."""

    status: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def told(self, pattern: str) -> list[str]:
        """The lines in which PATTERN, a regular expression, occurs."""
        return [line for line in self.lines if re.search(pattern, line)]

    @property
    def outcome(self) -> str:
        """The last line without its `=` and its time."""
        return re.sub(r"^=* ?| in [0-9.]+s.*$", "", self.lines[-1])


class Project:
    """Test files in DIRECTORY, and pytest there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o644)

    def run(
        self,
        *arguments: str,
        wrap: Sequence[str] = (),
        command: Sequence[str] = (),
        **environment: str,
    ) -> Run:
        """`python -m pytest ARGUMENTS` (or another COMMAND), in the project, behind WRAP."""
        inherited = {k: v for k, v in os.environ.items() if not FOREIGN.match(k)}
        done = subprocess.run(
            [*wrap, *IN_DIRECTORY, str(self.directory), *(command or PYTEST), *QUIET, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **inherited,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTEST_DEBUG_TEMPROOT": str(self.directory),
                **environment,
            },
        )
        return Run(done.returncode, done.stdout + done.stderr)
