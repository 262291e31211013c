"""The words of the demo of capture, and which step shows what.

Written for somebody who never heard of ambient: short sentences, one thought each.
"""

from __future__ import annotations

from pyztun.tools.capture_stage import CaptureStage
from pyztun.tools.capture_story import CaptureStory
from pyztun.tools.play import Script, Step

TITLE = "pyztun demo --capture: a pod's traffic goes through ztunnel, or nowhere"
OPENING = """\
ztunnel listens inside every pod; pyztun demo and pyztun demo --zds show that. But no program in a
pod connects to it, and none has to be changed to do so: rules in the pod's own network namespace
(netns) redirect each TCP connection to it, by nftables, the kernel's packet filter. ztunnel asks
the kernel where the connection was to go, and relays it there. Here one pod has a web server, the
other asks it for a page. Two rules hold all of it together:"""
RULES = (
    "In the pod all TCP is redirected, out to port 15001, in to 15006; what was not is reset. "
    "Neither server nor client can tell.",
    "The rules stay when ztunnel or the agent dies. So while nobody relays, nothing passes.",
)
CLOSING = """\
A pod that is captured has no way around ztunnel: if that is dead, its connections are refused.
Only pyztun-cni del opens the pod again. UDP and ICMP are not captured. Step by step: pyztun demo
--capture --pause. By hand: docs/walkthrough.md. What happens when anything fails:
docs/operations.md."""


STEPS = (
    Step(
        "Two pods, a page, and nobody in between",
        """The demo makes two netns, web and cache, and connects them by a bridge, which is in a
        third netns, the node's. In web it starts a web server. cache asks for the page. Its client
        is a socket that the demo makes there. It sends half a request and waits, so that the kernel
        can be asked: who has the socket at the other end?""",
        ("csrc/netns_create.c: pz_netns_pin()", "pyztun/tools/page_server.py: do_GET()"),
        CaptureStory.plain,
    ),
    Step(
        "The agent and ztunnel start",
        """Both are at home, not in a pod. The agent knows no pod yet, so it changes none.""",
        ("pyztun/cni/agent/service.py: run()", "pyztun/ztunnel/agent_link.py: dial()"),
        CaptureStory.programs_start,
    ),
    Step(
        "Both pods are captured",
        """pyztun-cni add writes the rules before anybody is told of the pod, all at once. A child
        of the agent, podside, goes into the pod for it. Connections that the pod had before would
        go on beside the rules, so they are cut. There is one in the demo, with half a request on
        it. What the server answers to ztunnel has to come back to ztunnel and not go out by eth0:
        a mark and one more routing table see to that.""",
        (
            "pyztun/cni/commands/add.py: _add()",
            "pyztun/cni/capture/inpod.py: put()",
            "pyztun/cni/capture/routes.py: put()",
            "pyztun/cni/capture/nfnetlink.py: flush_conntrack()",
        ),
        CaptureStory.pods_are_captured,
    ),
    Step(
        "The same page, through ztunnel",
        """Nothing has changed for the client: the same address, the same bytes. But the socket at
        the other end is ztunnel's now, in cache. From there ztunnel connects to web, where it is
        redirected to ztunnel again, and that connects to the server, from the address of cache,
        which is not even in web. So the server sees who really asked. ztunnel logs each
        connection twice, once for either pod.""",
        (
            "csrc/relay_verdict.c: pz_relay_verdict()",
            "csrc/relay_door.c: call_destination()",
            "csrc/relay_door.c: take_source()",
            "csrc/relay_pump.c: pz_pump()",
            "csrc/relay_log.c: pz_log_line()",
        ),
        CaptureStory.same_page_again,
        """The process that relays is in neither pod. Of a connection it holds four sockets: two
        that were made in cache, two that were made in web.""",
    ),
    Step(
        "ztunnel is killed: refused, not plain",
        """The rules are still there and lead to a port where nobody listens any more. So the kernel
        refuses, at once. The server does not hear of it.""",
        ("pyztun/cni/agent/lifecycle.py: connections_changed()",),
        CaptureStory.ztunnel_is_killed,
        "That is what fails closed means: no proxy, no connection.",
    ),
    Step(
        "ztunnel comes back",
        """It dials, gets a snapshot and listens in the pods again. Nobody touches the pods.""",
        ("pyztun/ztunnel/zds_receiver.py: _snapshot_sent()",),
        CaptureStory.ztunnel_is_back,
    ),
    Step(
        "Root in the pod flushes all rules",
        """The pod's netns is the pod's own, so its root may do that. The kernel tells podside of
        every change. It compares, writes the rules again, and cuts all connections once more: one
        of them may have been opened in the meantime. To show that, the demo stops podside for a
        moment, flushes again and connects.""",
        (
            "pyztun/cni/capture/podside.py: _look_at_those_due()",
            "pyztun/cni/capture/inpod.py: put()",
            "pyztun/cni/agent/capture.py: reported()",
        ),
        CaptureStory.rules_are_flushed,
    ),
    Step(
        "The pods are released",
        """pyztun-cni del takes the rules away, then tells ztunnel. The pods are as they were.""",
        (
            "pyztun/cni/commands/delete.py: _delete()",
            "pyztun/cni/capture/inpod.py: remove()",
        ),
        CaptureStory.pods_are_deleted,
    ),
    Step(
        "The end",
        """The server ends, the names of the pods are deleted and the node's netns is let go of. If
        agent or ztunnel still held anything there, a netns would live on.""",
        ("pyztun/tools/deathwatch.py: is_gone()",),
        CaptureStory.all_ends,
    ),
)

SCRIPT = Script(TITLE, OPENING, RULES, STEPS, CLOSING, CaptureStage, CaptureStory)
