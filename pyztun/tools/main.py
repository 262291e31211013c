"""The command `pyztun`: a module a subcommand."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyztun import __version__
from pyztun.tools import demo, netns

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBCOMMANDS = {"demo": demo, "netns": netns}
"""Name -> module with SUMMARY, DESCRIPTION, add_arguments(parser) and run(asked) -> exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. ``argv`` without the program name."""
    parser = argparse.ArgumentParser(
        prog="pyztun",
        description="Tools around pyztun-cni and pyztun-ztunnel.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pyztun {__version__}")
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, title="subcommands")
    for name, module in SUBCOMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    asked = parser.parse_args(argv)
    status: int = asked.run(asked)
    return status
