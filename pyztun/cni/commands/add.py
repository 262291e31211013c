"""`pyztun-cni add`: a netns becomes a workload.

The netns is opened and checked here, with the rights of the user; the agent opens it again through
our descriptor, so that what it serves is what the user meant, and keeps the reference for later.
"""

from __future__ import annotations

import json
import os

from pyztun.cni.arguments import UsageError
from pyztun.cni.commands import client, frame
from pyztun.cni.commands.text import shown
from pyztun.cni.commands.words import OPTIONS
from pyztun.cni.output import tell
from pyztun.errors import SyscallError
from pyztun.netns import NAMES, NetNs, numbered_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyztun.cni.commands.words import Given

HELP = f"""\
usage: pyztun-cni add [OPTIONS] NETNS

Makes the network namespace NETNS a workload: the agent puts rules into it that redirect its TCP
connections to ztunnel, passes it to every ztunnel and keeps it. It returns when the newest ztunnel
has acknowledged it. Where none does, the workload is kept as pending all the same, its rules stay
in place, so that its connections are refused, and it is sent again until `pyztun-cni del` ends it.

Connections that the netns had before its rules are reset; a second line says so. Adding it twice is
adding it once, and resets nothing; other words for the same uid replace the old ones. Needs no
capability.

NETNS    a path (/run/netns/ns2), a bare name (ns2, meaning /run/netns/ns2), pid:N (the netns of a
         process) or fd:N (a descriptor that this command inherited)

options:
  --uid UID            of the workload (default: made of the real path of NETNS, or for pid:N and
                       fd:N of the boot and the cookie, so that it is the same each time)
  --name NAME          (default: the last part of NETNS)
  --namespace NS       (default: default)
  --service-account SA (default: default)
  --label KEY=VALUE    of your own, shown by list --json; repeatable
  --capture HOW        redirect: TCP by rules in NETNS, out to port 15001, in to 15006 (default).
                       none: not at all; takes away the rules of an earlier add
{OPTIONS}

exit status:
  0  ready
  1  refused or failed; one line on stderr says why, and whether it is kept as pending
  2  usage

The rules outlive agent and ztunnel: only `pyztun-cni del`, or --capture none, removes them.

examples:
  ip netns add ns2 && ip -n ns2 link set lo up
  pyztun-cni add ns2
  pyztun-cni add --uid 7d3f --name web --namespace shop --label tier=front /run/netns/ns2
  pyztun-cni add pid:4711 --timeout 2
  pyztun-cni add --capture none ns2
"""

FIELDS = {
    "--uid": "uid",
    "--name": "name",
    "--namespace": "namespace",
    "--service-account": "service_account",
    "--capture": "capture",
}


CAPTURES = ("redirect", "none")
RESET = "connections from before were reset"
CLOSED = "new ones are refused until it is ready (`pyztun-cni del` ends that)"


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return frame.run("add", HELP, words, _check, _add, (*FIELDS, "--label"))


def absolute(reference: str) -> str:
    """The reference as it reads from any working directory. OSError: ours is gone."""
    if numbered_reference(reference):
        return reference
    if "/" not in reference:
        return f"{NAMES}/{reference}"
    path = os.path.join(os.getcwd(), reference)
    # Behind a symbolic link, `..` is not the directory that the text says.
    return path if ".." in path.split("/") else os.path.normpath(path)


def _check(given: Given) -> None:
    given.one("NETNS")
    capture = given.values.get("--capture", CAPTURES[0])
    if capture not in CAPTURES:
        raise UsageError(f"--capture {capture}: it is {' or '.join(CAPTURES)}")


def _add(given: Given, control: str, timeout: float) -> int:
    reference = given.rest[0]
    try:
        netns, whole = NetNs.open(reference), absolute(reference)
    except SyscallError as error:
        return frame.fail(_about(reference, str(error)))
    except OSError as error:
        return frame.fail(f"{reference}: the working directory: {error.strerror}")
    body: client.Json = {
        "netns": whole,
        "descriptor": f"/proc/{os.getpid()}/fd/{netns.fileno()}",
        "timeout": timeout,
        "labels": given.labels,
    }
    body |= {field: given.values[each] for each, field in FIELDS.items() if each in given.values}
    with netns:
        try:
            workload = client.ask(control, "POST", "/v1/workloads", timeout, body)
        except client.Refused as refused:
            kept = refused.workload if refused.code != "netns-taken" else None
            rest = f" (uid {kept.get('uid')})" if kept else ""
            if kept and kept.get("connections_reset") is True:
                rest += f"; {RESET}"
                rest += f", {CLOSED}" if kept.get("capture") == "redirect" else ""
            return frame.fail(_about(reference, f"{refused.reason}{rest}"))
        except KeyboardInterrupt:
            return frame.fail(
                f"{reference}: interrupted (`pyztun-cni list` tells what became of it)"
            )
        except client.NoAnswer as error:
            return frame.fail(f"{reference}: {error} (`pyztun-cni list` tells what became of it)")
    return _tell_outcome(given, workload)


def _tell_outcome(given: Given, workload: client.Json) -> int:
    """What an Add that was acknowledged came to. The exit status."""
    if given.is_json:
        tell(json.dumps(workload))
    else:
        words = f"{workload.get('name')} uid={workload.get('uid')} netns={workload.get('cookie')}"
        tell(shown(f"{workload.get('state')} {words}"))
        if workload.get("connections_reset") is True:
            tell(RESET)
    if workload.get("state") != "ready":  # acknowledged, and of no use as it is
        return frame.fail(f"{given.rest[0]}: {workload.get('state')}: {workload.get('reason')}")
    return frame.DONE


def _about(reference: str, text: str) -> str:
    return text if reference in text else f"{reference}: {text}"
