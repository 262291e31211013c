"""How a script is played: its steps in order, each with its words, its acts and what was seen."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from pyztun.errors import PyztunError
from pyztun.tools.observations import NotAsTold, Observations
from pyztun.tools.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.tools.interrupts import Interrupts
    from pyztun.tools.terminal import Terminal

StageT = TypeVar("StageT", bound=Stage)
StoryT = TypeVar("StoryT")


@dataclass(frozen=True)
class Step(Generic[StoryT]):
    """One step.

    :ivar places: the code that does it, each ``FILE: FUNCTION()``.
    :ivar act: a method of the story.
    :ivar moral: said at the end, when all has been seen.
    """

    title: str
    text: str
    places: tuple[str, ...]
    act: Callable[[StoryT], None]
    moral: str = ""


@dataclass(frozen=True)
class Script(Generic[StageT, StoryT]):
    """All the words of a demo, and what makes its stage and its story.

    :ivar rules: what one has to know before, a numbered list.
    """

    title: str
    opening: str
    rules: tuple[str, ...]
    steps: tuple[Step[StoryT], ...]
    closing: str
    make_stage: Callable[[], StageT]
    make_story: Callable[[StageT, Terminal, Observations], StoryT]


def play(
    script: Script[StageT, StoryT], terminal: Terminal, interrupts: Interrupts, *, pause: bool
) -> int:
    """Plays it on a stage of its own, which is gone afterwards; returns the exit status.

    :param pause: wait for a person before each step.
    :raises PyztunError, OSError: it cannot be played here, or a program does not do its part.
    :raises KeyboardInterrupt:
    """
    with closing(script.make_stage()) as stage:
        observations = Observations(terminal)
        story = script.make_story(stage, terminal, observations)
        started = monotonic()
        terminal.heading(script.title)
        terminal.say(script.opening)
        terminal.points(script.rules)
        try:
            for number, step in enumerate(script.steps, 1):
                title = f"[{number}/{len(script.steps)}] {step.title}"
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
        terminal.say(script.closing)
        seconds = "" if pause else f" ({monotonic() - started:.1f} s)"
        terminal.verdict(f"All {observations.count} observations were as told{seconds}.", good=True)
        return 0


def _act(step: Step[StoryT], stage: Stage, story: StoryT) -> None:
    try:
        step.act(story)
    except BrokenPipeError:
        raise
    except (PyztunError, OSError):
        # Whatever went wrong: if one of the programs is dead, that is why.
        stage.check_programs()
        raise
