"""`pyztun demo`: plays the story on pods of its own, and tells whether all was as told."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING

from pyztun import stdio
from pyztun.errors import PyztunError, SyscallError

if TYPE_CHECKING:
    import argparse

    from pyztun.tools.interrupts import Interrupts
    from pyztun.tools.script import Step
    from pyztun.tools.stage import Stage
    from pyztun.tools.story import Story
    from pyztun.tools.terminal import Terminal

SUMMARY = "show a handoff on two pods of its own, with the evidence after every step"
DESCRIPTION = """\
Makes two pods (network namespaces), starts pyztun-ztunnel, hands both over with pyztun-cni, and
shows after each step what the kernel says. Leaves nothing behind. Needs root, or a user namespace:

  unshare --user --map-root-user --net --mount pyztun demo

Exit status: 0 if every observation was as told, 1 if not or if it could not run, 2 usage.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pause", action="store_true", help="wait for Enter before each step")
    add("--plain", action="store_true",
        help="no colour, no cursor control; the default where stdout is no terminal")  # fmt: skip


def run(asked: argparse.Namespace) -> int:
    """Runs the demo; returns the exit status."""
    from pyztun.tools.interrupts import Interrupts
    from pyztun.tools.stage import Stage
    from pyztun.tools.terminal import Terminal, wants_plain

    if sys.stdout is None:
        return _fail("stdout is closed")
    interrupts = Interrupts()
    terminal = Terminal(sys.stdout, plain=asked.plain or wants_plain(sys.stdout))
    try:
        with closing(Stage()) as stage:
            return _play(stage, terminal, interrupts, pause=asked.pause)
    except BrokenPipeError:
        stdio.forget(sys.stdout)
        return 1
    except (PyztunError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted; everything is cleaned up")


def _play(stage: Stage, terminal: Terminal, interrupts: Interrupts, *, pause: bool) -> int:
    from pyztun.tools import script
    from pyztun.tools.observations import NotAsTold, Observations
    from pyztun.tools.story import Story

    observations = Observations(terminal)
    story = Story(stage, terminal, observations)
    started = monotonic()
    terminal.heading(script.TITLE)
    terminal.say(script.OPENING)
    terminal.points(script.RULES)
    try:
        for number, step in enumerate(script.STEPS, 1):
            title = f"[{number}/{len(script.STEPS)}] {step.title}"
            interrupts.check()
            if pause:
                with interrupts.allowed():
                    terminal.wait_for_enter(title)
            terminal.heading(title)
            terminal.say(step.text)
            terminal.places(step.places)
            _act(step, stage, story)
            observations.end_of_step()
            terminal.moral(step.moral)
    except NotAsTold:
        wrong = f"{observations.failed} of {observations.count} observations were not as told."
        terminal.verdict(wrong, good=False)
        return 1
    terminal.heading("So this is how")
    terminal.say(script.CLOSING)
    seconds = "" if pause else f" ({monotonic() - started:.1f} s)"
    terminal.verdict(f"All {observations.count} observations were as told{seconds}.", good=True)
    return 0


def _act(step: Step, stage: Stage, story: Story) -> None:
    try:
        step.act(story)
    except BrokenPipeError:
        raise
    except (PyztunError, OSError):
        # Whatever went wrong: if ztunnel is dead, that is why.
        stage.check_ztunnel()
        raise


def _fail(reason: object) -> int:
    """One line on stderr, and the exit status."""
    text = str(reason)
    if isinstance(reason, SyscallError) and reason.errno in (errno.EPERM, errno.EACCES):
        text = f"needs root, or a user namespace: {_in_user_namespace()} ({text})"
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        stdio.forget(sys.stdout)
    if sys.stderr is not None:
        sys.stderr.write(f"pyztun demo: {text}\n")
    return 1


def _in_user_namespace() -> str:
    """A command line that needs no privilege, as it can be typed here."""
    us = os.path.realpath(sys.argv[0])
    on_path = os.path.realpath(shutil.which("pyztun") or "") == us
    return f"unshare --user --map-root-user --net --mount {'pyztun' if on_path else us} demo"
