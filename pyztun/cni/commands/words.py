"""The words behind `add`, `del`, `list` and `status`: options taken apart by hand. Pure.

Like arguments.py, for its reason: `add` may run once for every pod of a machine.
"""

from __future__ import annotations

from pyztun.cni.arguments import UsageError, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_CONTROL = "/run/pyztun/agent.sock"
VARIABLE = "PYZTUN_CONTROL"
DEFAULT_TIMEOUT, MAX_TIMEOUT = 10.0, 600.0
HELP_WORDS = ("-h", "--help")

OPTIONS = """\
  --json               print JSON
  --control SOCKET     the agent's socket (default: PYZTUN_CONTROL, else /run/pyztun/agent.sock)
  --timeout SECONDS    for the agent's answer (default 10)
  --help               print this and exit"""


class Given:
    """What was given.

    :ivar values: the last value of each option.
    :ivar labels: of all `--label`.
    :ivar rest: what is no option, in order.
    """

    __slots__ = ("is_json", "labels", "rest", "values", "wants_help")

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.rest: list[str] = []
        self.is_json = self.wants_help = False

    @property
    def timeout(self) -> float:
        """Seconds. UsageError."""
        text = self.values.get("--timeout")
        return DEFAULT_TIMEOUT if text is None else seconds(text, MAX_TIMEOUT)

    def control(self, environ: Mapping[str, str]) -> str:
        """The path of the agent's socket. UsageError."""
        if self.values.get("--control") == "":
            raise UsageError("--control is empty")
        return self.values.get("--control") or environ.get(VARIABLE) or DEFAULT_CONTROL

    def one(self, what: str) -> str:
        """The only word that is no option. UsageError."""
        if not self.rest:
            raise UsageError(f"{what} is missing")
        self.nothing_behind(1)
        if not self.rest[0]:
            raise UsageError(f"{what} is empty")
        return self.rest[0]

    def nothing_behind(self, count: int = 0) -> None:
        """UsageError where there are more words than that."""
        if len(self.rest) > count:
            raise UsageError(f"{self.rest[count]!r} is one word too many")


def read(words: Sequence[str], options: Sequence[str] = ()) -> Given:
    """Takes the words apart. Options may stand anywhere; `--` ends them. UsageError.

    :param options: those with a value that this command has, beside --control and --timeout.
    """
    given = Given()
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            given.rest += queue
            break
        if word in HELP_WORDS:
            given.wants_help = True
            break
        if word == "--json":
            given.is_json = True
        elif name in options or name in ("--control", "--timeout"):
            if not equals and not queue:
                raise UsageError(f"{name} needs a value")
            _take(given, name, value if equals else queue.pop(0))
        elif word.startswith("-") and word != "-":
            raise UsageError(f"unknown option {word}")
        else:
            given.rest.append(word)
    return given


def _take(given: Given, name: str, value: str) -> None:
    if name != "--label":
        given.values[name] = value
        return
    key, equals, text = value.partition("=")
    if not key or not equals:
        raise UsageError(f"--label {value}: not KEY=VALUE")
    given.labels[key] = text
