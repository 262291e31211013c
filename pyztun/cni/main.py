"""The command `pyztun-cni`: decides what was asked for and loads only that."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """\
usage: pyztun-cni [OPTIONS] SOCKET NETNS...
       pyztun-cni [OPTIONS] SOCKET --release NETNS|cookie:N...
       pyztun-cni [OPTIONS] SOCKET --list
       pyztun-cni agent|add|del|list|status ... (each has --help)

Opens each network namespace and passes its descriptor over the Unix socket SOCKET to a ztunnel,
which makes its listeners inside; waits for the answer and prints `listeners ready` once per
confirmed NETNS. Needs no capability: opening a named netns is enough. Works as well with a
receiver that never answers.

A first word agent, add, del, list or status is the node agent or a command to it; a SOCKET of such
a name is written ./add.

NETNS    a path (/run/netns/ns2), a bare name (ns2, meaning /run/netns/ns2), pid:N (the netns of a
         process) or fd:N (a descriptor that this command inherited)

options:
  --release          let go of each NETNS instead; by cookie:N once its path is gone
  --list             print what the ztunnel holds, one netns a line
  --timeout SECONDS  for connecting and for each answer (default 2)
  --require-ready    exit with 3 where an answer does not come in time (default: 0)
  --verbose          print each descriptor sent, and each answer, to stderr
  --help             print this and exit
  --version          print the version and exit

exit status:
  0  done, or sent to a receiver that did not answer
  1  refused or failed; one line on stderr says why. With several NETNS all are tried
  2  usage
  3  not confirmed, with --require-ready

examples:
  ip netns add ns2 && ip -n ns2 link set lo up
  pyztun-cni /tmp/zt.sock ns2
  pyztun-cni /tmp/zt.sock pid:4711 /run/netns/ns3
  pyztun-cni /tmp/zt.sock --release cookie:4133
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. ``argv`` without the program name."""
    from pyztun import stdio
    from pyztun.cni import output

    stdio.occupy()
    output.speak_any_locale()
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] == "agent":
        from pyztun.cni.agent import service

        return service.main(words[1:])
    try:
        return _run(words)
    except KeyboardInterrupt:
        output.complain("interrupted")
    except OSError as error:
        stdio.forget(sys.stdout)
        output.complain(f"stdout: {error.strerror}")
    return 1


def _run(words: Sequence[str]) -> int:
    from pyztun.cni import arguments, output

    if words and words[0] in arguments.BUILT:
        return _ask_agent(words[0], words[1:])
    try:
        asked = arguments.parse(words)
    except arguments.UsageError as error:
        output.complain(f"{error} (try pyztun-cni --help)")
        return 2
    if asked.action == "help":
        output.tell(HELP.rstrip())
        return 0
    if asked.action == "version":
        from pyztun import __version__

        output.tell(f"pyztun-cni {__version__}")
        return 0
    from pyztun.cni import oneshot

    return oneshot.run(asked)


def _ask_agent(name: str, words: Sequence[str]) -> int:
    """One of the commands to the agent; each is loaded alone."""
    if name == "add":
        from pyztun.cni.commands.add import main as command
    elif name == "del":
        from pyztun.cni.commands.delete import main as command
    elif name == "list":
        from pyztun.cni.commands.list import main as command
    else:
        from pyztun.cni.commands.status import main as command
    return command(words)
