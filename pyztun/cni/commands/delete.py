"""`pyztun-cni del`: a workload ends."""

from __future__ import annotations

import json
import os

from pyztun.cni.commands import client, frame
from pyztun.cni.commands.text import shown
from pyztun.cni.commands.words import OPTIONS
from pyztun.cni.output import complain, tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyztun.cni.commands.words import Given

HELP = f"""\
usage: pyztun-cni del [OPTIONS] UID|NETNS

Ends a workload: its rules are removed from its netns, every ztunnel is told to stop serving it, and
the agent forgets it, also one that is pending. Where the rules cannot be removed nothing changes; a
netns that is gone has none.

The word is a uid first, else the NETNS with which it was added (a path, or a bare name for one
under /run/netns), which need not exist any more, or cookie:N. Where it means two workloads, neither
is touched.

options:
{OPTIONS}

exit status:
  0  deleted, and every ztunnel confirmed it
  1  refused or failed; one line on stderr says why
  2  usage
  3  deleted, but a ztunnel did not confirm it in time; it learns of it by its next snapshot

examples:
  pyztun-cni del ns2
  pyztun-cni del 7d3f
"""


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return frame.run("del", HELP, words, _check, _delete)


def _check(given: Given) -> None:
    given.one("UID or NETNS")


def _delete(given: Given, control: str, timeout: float) -> int:
    key = given.rest[0]
    try:
        said = _ask(control, key, timeout)
    except client.Refused as refused:
        # A uid may look like a relative path, so it is one only if it is no uid.
        if refused.code != "no-such-workload" or "/" not in key or key.startswith("/"):
            raise
        try:
            whole = os.path.abspath(key)
        except OSError as error:
            return frame.fail(f"{key}: the working directory: {error.strerror}")
        said = _ask(control, whole, timeout)
    workload = said.get("workload")
    unconfirmed = said.get("unconfirmed")
    if not isinstance(workload, dict) or not isinstance(unconfirmed, list):
        return frame.fail(f"{control}: what answers there is not the agent")
    if given.is_json:
        tell(json.dumps(said))
    else:
        tell(shown(f"deleted {workload.get('name')} uid={workload.get('uid')}"))
    if unconfirmed:
        numbers = " ".join(map(str, unconfirmed))
        complain(shown(f"{key}: not confirmed by ztunnel {numbers}"))
        return frame.UNCONFIRMED
    return frame.DONE


def _ask(control: str, key: str, timeout: float) -> client.Json:
    path = f"/v1/workloads/{client.encoded(key)}?timeout={timeout:g}"
    return client.ask(control, "DELETE", path, timeout)
