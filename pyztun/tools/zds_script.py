"""The words of the demo of the ZDS form, and which step shows what.

Written for somebody who never heard of ambient: short sentences, one thought each.
"""

from __future__ import annotations

from pyztun.tools.play import Script, Step
from pyztun.tools.zds_stage import ZdsStage
from pyztun.tools.zds_story import ZdsStory

TITLE = "pyztun demo --zds: pods restart, programs die, and what should be served is served"
OPENING = """\
On a node of Istio's ambient mode two programs share the work. The node agent knows which pods there
are. ztunnel listens inside every pod, yet lives in none: a pod has a network namespace of its own
(netns), and pyztun demo shows how a listener gets into it. Between the two is a Unix socket, and on
it a small protocol, ZDS: one message about one pod, with its netns as a file descriptor (fd), and
one answer. Here both run as processes of their own, and either is killed. Two rules hold all of it
together:"""
RULES = (
    "The agent keeps the list of pods on disk. Whoever connects is first told all of it: a "
    "snapshot.",
    "ztunnel serves what it was last told until it is told otherwise. For that it needs no agent.",
)
CLOSING = """\
The agent knows what should be, ztunnel does it, and a snapshot after every connection makes both
agree again. So each may die at any time: without ztunnel the list is still there, without the agent
the listeners are. Step by step: pyztun demo --zds --pause. By hand: docs/walkthrough.md. The
messages: docs/zds.md."""


STEPS = (
    Step(
        "Three pods, and an agent that knows none",
        """The demo makes three netns, web, db and cache. Each has a path, /run/netns/demo-NAME-PID.
        The kernel gives every netns a number that is never used again, the cookie. Then the agent
        starts. It makes two sockets: one for ztunnel, one for the commands that a person types.""",
        ("csrc/netns_create.c: pz_netns_pin()", "pyztun/cni/agent/service.py: run()"),
        ZdsStory.three_pods,
    ),
    Step(
        "ztunnel dials, and gets an empty snapshot",
        """ztunnel connects to the agent and says hello. The agent tells it every pod that it knows.
        There is none, so the snapshot is over at once.""",
        ("pyztun/ztunnel/agent_link.py: dial()", "pyztun/protocol/zds_agent.py: next_request()"),
        ZdsStory.ztunnel_dials,
    ),
    Step(
        "Two pods become workloads",
        """A workload is a pod that is to be served. pyztun-cni add names its netns and gives it a
        uid, which stays the same for as long as the pod is wanted. The agent writes it to disk and
        sends the netns to ztunnel. The command ends when ztunnel has said that it listens. Traffic
        is left alone here (--capture none): pyztun demo --capture redirects it.""",
        (
            "pyztun/cni/commands/add.py: _add()",
            "pyztun/ztunnel/zds_receiver.py: _taken()",
            "csrc/zds.c: take()",
        ),
        ZdsStory.pods_are_added,
        """The agent holds each netns, in order to send it again. ztunnel holds it too: whatever it
        connects to for a pod, it connects to from there.""",
    ),
    Step(
        "The listeners are in the pods",
        """This is what the kernel says, not what the programs say. A small process, put into each
        pod by nsenter, reads the list of sockets there, and connects to 127.0.0.1, which is the
        pod's own. ztunnel accepts, and asks the kernel where the client wanted to go. This one was
        not redirected by anybody, so there is nowhere to go, and ztunnel resets it. cache was not
        added, so nothing is in it.""",
        ("csrc/visit.c: make_sockets()", "csrc/relay_verdict.c: pz_relay_verdict()"),
        ZdsStory.listeners_are_in_the_pods,
    ),
    Step(
        "web restarts: another netns, the same uid",
        """A pod that restarts gets a new netns under its old path. The demo deletes the netns of
        web and makes another one of the same name. It tells nobody. The agent hears from the kernel
        that a mount has changed, looks, and sends the new netns under the old uid.""",
        (
            "pyztun/cni/agent/watch.py: check_mounted()",
            "pyztun/cni/agent/lifecycle.py: _found_another()",
            "pyztun/ztunnel/zds_receiver.py: _attempt()",
        ),
        ZdsStory.pod_restarts,
        """ztunnel has made the new listeners and closed the old ones, and both programs have closed
        their old fd. Nothing held the old netns any more, so it died.""",
    ),
    Step(
        "ztunnel is killed, and comes back",
        """A killed process loses its sockets, so nobody listens in the pods. The agent sees the end
        of the connection and marks its workloads. A new ztunnel knows nothing. It dials, and the
        snapshot tells it everything.""",
        (
            "pyztun/cni/agent/lifecycle.py: connections_changed()",
            "pyztun/ztunnel/zds_receiver.py: _snapshot_sent()",
        ),
        ZdsStory.ztunnel_is_killed,
    ),
    Step(
        "The agent is killed, and comes back",
        """Nobody can ask for anything now, but ztunnel serves on. A new agent reads the list from
        disk, opens each netns by its path, and compares the cookie: is it still the one that was
        meant? ztunnel dials again by itself. It hears the same list as before, and changes nothing.
        Then cache is added, as if nothing had happened.""",
        (
            "pyztun/cni/agent/store.py: load()",
            "pyztun/cni/agent/lifecycle.py: _open_all()",
            "pyztun/ztunnel/zds_receiver.py: _confirm()",
        ),
        ZdsStory.agent_is_killed,
    ),
    Step(
        "web is deleted",
        """pyztun-cni del takes the uid. The agent tells every ztunnel, and ends when all have
        confirmed. The netns of web is still there: it belongs to the pod, not to us.""",
        ("pyztun/cni/commands/delete.py: _delete()", "pyztun/ztunnel/zds_receiver.py: _delete()"),
        ZdsStory.pod_is_deleted,
    ),
    Step(
        "The pods end, then the programs",
        """The demo deletes all three names. Nothing holds web. In db and cache there are still
        listeners, and both programs have an fd of each. But the agent sees that the paths are gone
        and tells ztunnel. Both close their fds, so these two die as well. The agent keeps their
        uids: the pods might come back.""",
        ("pyztun/cni/agent/lifecycle.py: _found_gone()", "pyztun/tools/deathwatch.py: is_gone()"),
        ZdsStory.all_ends,
    ),
)

SCRIPT = Script(TITLE, OPENING, RULES, STEPS, CLOSING, ZdsStage, ZdsStory)
