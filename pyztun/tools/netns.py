"""`pyztun netns ls`: every network namespace of the machine, and why it still exists."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from pyztun import stdio
from pyztun.errors import PyztunError

if TYPE_CHECKING:
    from pyztun.tools.census import Census

SUMMARY = "look at the network namespaces of this machine"
DESCRIPTION = """\
Looks at network namespaces without entering one.

  pyztun netns ls          every netns once: who is in it, what listens, why it still exists
  pyztun netns ls --help   more about that
"""
LS_SUMMARY = "list every netns, also those that only a socket or a descriptor keeps alive"
LS_DESCRIPTION = """\
Lists every network namespace of this machine once, by its cookie: names and paths, processes,
listening sockets with their owners, and all that keeps it alive: mounts, processes, threads, and
descriptors and sockets of processes elsewhere, which may be all that is left of a netns.

A table on a terminal; elsewhere one fact a line, in full. What could not be read is told at the end
(in JSON: "unreadable"). As root it sees all; without privilege, your own processes and every name.
"""
LS_EPILOG = """\
examples:
  pyztun netns ls
  pyztun netns ls | grep ' socket '                     who holds a socket in another netns
  pyztun netns ls | grep 0.0.0.0:8080                   who listens there, in any netns
  pyztun netns ls --json | jq '.netns[] | select(.names == [] and .processes == [])'

exit status: 0 done, also if something could not be read; 1 failed, one line on stderr, or the
reader of the pipe has gone; 2 usage; 130 interrupted
"""
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, title="subcommands")
    ls = commands.add_parser(
        "ls",
        help=LS_SUMMARY,
        description=LS_DESCRIPTION,
        epilog=LS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ls.add_argument("--json", action="store_true", help="one JSON object; see docs/netns-ls.md")


def run(asked: argparse.Namespace) -> int:
    """Runs the only subcommand; returns the exit status."""
    if sys.stdout is None:
        return _fail("stdout is closed")
    # A name that the locale cannot show is escaped, not an error.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        census = _take()
        if asked.json:
            _print_json(census)
        else:
            _print_text(census)
        sys.stdout.flush()
    except BrokenPipeError:
        stdio.forget(sys.stdout)
        return 1
    except KeyboardInterrupt:
        stdio.forget(sys.stdout)
        return INTERRUPTED
    except (PyztunError, OSError) as error:
        stdio.forget(sys.stdout)
        return _fail(error)
    return 0


def _take() -> Census:
    from contextlib import closing

    from pyztun.tools.census import Census
    from pyztun.tools.netns_progress import progress
    from pyztun.tools.procwalk import Walk

    with progress() as tell, closing(Census()) as census:
        Walk(census, tell).run()
    return census


def _print_json(census: Census) -> None:
    """One netns a line: json is written by C then, and a line can be read by a person."""
    import json

    from pyztun.tools.netns_json import described

    netns, unreadable = (",\n".join(map(json.dumps, part)) for part in described(census))
    sys.stdout.write(f'{{"netns": [\n{netns}\n], "unreadable": [\n{unreadable}\n]}}\n')


def _print_text(census: Census) -> None:
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from pyztun.tools.netns_table import print_table

        print_table(census)
    else:
        from pyztun.tools.netns_plain import lines

        sys.stdout.writelines(f"{line}\n" for line in lines(census))


def _fail(reason: object) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"pyztun netns ls: {reason}\n")
    return 1
