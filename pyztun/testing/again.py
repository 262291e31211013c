"""Running pytest again in a user namespace, in the place of this process.

A process with threads cannot move into a user namespace, and pytest's plugins may have some. So the
run that finds that its tests need one ends as if interrupted, all plugins included, without a word
on the terminal; then unshare(1) and the same command take its place by exec. The pid, the terminal,
the working directory and the environment stay; the exit status is that of the second run.
"""

from __future__ import annotations

import getpass
import os
import sys
import threading
from pathlib import Path

import pytest

from pyztun.testing import userns
from pyztun.testing.plugin import GUARD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

PYTEST = ("pytest.__main__", "pytest", "py.test")
NAMED_USER = ("LOGNAME", "USER", "LNAME", "USERNAME")

_command = pytest.StashKey[list[str]]()
_arrived = pytest.StashKey[bool]()


def why_not_again(config: pytest.Config) -> str | None:
    """Why this pytest must not be run again, or None."""
    if config.stash.get(_arrived, False):
        return "this is already the user namespace that was made for it"
    if not config.getini("pyztun_userns"):
        return "the setting pyztun_userns forbids to run pytest again in a user namespace"
    if hasattr(config, "workerinput"):
        return "a worker of pytest-xdist cannot be run again in a user namespace"
    if not _is_the_program(config):
        return "pytest was called by another program, which cannot be run again in its midst"
    return None


def _is_the_program(config: pytest.Config) -> bool:
    """Whether this process is pytest and nothing else, so that its command line says it all.

    `coverage run -m pytest` counts: it makes pytest its main module.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else Path(getattr(main, "__file__", "")).name
    return (
        name in PYTEST
        and list(config.invocation_params.args) == sys.argv[1:]
        and threading.current_thread() is threading.main_thread()
        and bool(sys.executable)
    )


def leave(session: pytest.Session, why: str) -> None:
    """Ends this run; go_if_left() then starts the next one. Raises pytest's Exit."""
    config = session.config
    config.stash[_command] = [*userns.command(), sys.executable, *sys.orig_argv[1:]]
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        line = f"pyztun: {why}; runs again as root of a user namespace, with a network of its own"
        if terminal.isatty:
            terminal.rewrite("", erase=True)  # "collecting ..."
            terminal.rewrite("")
        elif config.option.verbose >= 1:
            terminal.write_line("")
        terminal.write_line(line)
        terminal.flush()
        # What reporters say at the end of this run is not about the tests.
        config.get_terminal_writer()._file = open(os.devnull, "w")  # noqa: SIM115
    # What plugins remember for the next run, such as which tests are new, is not to be of this one.
    config.option.collectonly = True
    pytest.exit("runs again in a user namespace", returncode=pytest.ExitCode.OK)


def go_if_left(
    config: pytest.Config, status: int | pytest.ExitCode | None
) -> int | pytest.ExitCode | None:
    """Becomes the second run if leave() was called; else returns ``status``."""
    command = config.stash.get(_command, None)
    if command is None:
        return status
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(config.invocation_params.dir)
    try:
        os.execve(command[0], command, _environment())  # noqa: S606
    except OSError as error:
        print(f"pyztun: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return pytest.ExitCode.INTERNAL_ERROR


def _environment() -> dict[str, str]:
    """Ours, the guard against running again for ever, and who we are, if nobody has said it.

    pytest names its temporary directory after the user. Without a name in the environment that
    would be root's in the user namespace, where the directory of the real root is in the way.
    """
    found = {**os.environ, GUARD: str(os.getpid())}
    if not any(found.get(name) for name in NAMED_USER):
        try:
            found["LOGNAME"] = getpass.getuser()
        except (KeyError, OSError):
            found["LOGNAME"] = f"uid{os.getuid()}"
    return found


def arrive(config: pytest.Config) -> None:
    """In the second run: remember it, set loopback up, and do not repeat the header.

    The guard holds the pid, which exec keeps: it is meant for this process and no child.
    """
    if os.environ.get(GUARD) != str(os.getpid()):
        return
    del os.environ[GUARD]
    config.stash[_arrived] = True
    userns.bring_loopback_up()
    config.pluginmanager.register(_NoSecondHeader(config), "pyztun-no-second-header")


class _NoSecondHeader:
    def __init__(self, config: pytest.Config) -> None:
        self._option = config.option

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionstart(self) -> Generator[None, None, None]:
        """The terminal reporter shows its header unless it is told to be quiet."""
        was, self._option.verbose = self._option.verbose, -1
        try:
            yield
        finally:
            self._option.verbose = was
