"""The words of the demo of the seed form, and which step shows what.

Written for somebody who never heard of ambient: short sentences, one thought each.
"""

from __future__ import annotations

from pyztun.tools.play import Script, Step
from pyztun.tools.seed_stage import SeedStage
from pyztun.tools.seed_story import SeedStory

TITLE = "pyztun demo: a listener is in a pod, its process is not"
OPENING = """\
Every pod has a network of its own: its own interfaces, its own ports, its own 127.0.0.1. Linux
calls this a network namespace, netns for short. The node has one too; we call it home. In Istio's
ambient mode one process on the node, ztunnel, listens inside every pod, yet it lives at home and
in none of the pods. Here are real processes that do it. Two rules of Linux are enough:"""
RULES = (
    "A file descriptor (fd) can stand for a netns. One process can send it to another.",
    "A socket stays in the netns in which it was made, wherever the process is that holds it.",
)
CLOSING = """\
The netns of a pod came as a file descriptor. With it one thread went into the pod, made three
sockets, and came back. Sockets stay where they were made: the listeners are in the pod, the process
that answers is at home. Step by step: pyztun demo --pause. By hand: docs/walkthrough.md."""


STEPS = (
    Step(
        "Two pods",
        """The demo makes two netns, web and db. They are empty: no process, no listener. The kernel
        gives every netns a number of its own, the cookie. That is how we tell them apart.""",
        ("csrc/netns_create.c: be_born()",),
        SeedStory.two_pods,
    ),
    Step(
        "ztunnel starts at home",
        """It is a process of its own. It opens a Unix socket and waits. It knows of no pod.""",
        ("pyztun/ztunnel/service.py: run()",),
        SeedStory.ztunnel_starts,
    ),
    Step(
        "The netns of web travels as a file descriptor",
        """pyztun-cni opens the netns of web, which gives it an fd, and sends that fd over the Unix
        socket. The kernel makes an fd for the same netns in ztunnel. Each process has its own
        number for it; the netns behind the two numbers is one. (The demo's pods have no name, hence
        the path /proc/PID/fd/N; it could be /run/netns/NAME.)""",
        ("csrc/fdpass.c: pz_send()", "csrc/fdpass.c: pz_receive_once()"),
        SeedStory.netns_travels,
    ),
    Step(
        "A thread visits the pod, the process stays at home",
        """On receiving the fd, one thread of ztunnel stepped into web, called socket() three times,
        and stepped back. At home it bound the three sockets to their ports and let them listen. All
        through step 3 the demo asked the kernel again and again: in which netns is ztunnel?""",
        ("csrc/visit.c: go_and_return()", "csrc/listen.c: pz_make_listening()"),
        SeedStory.process_stays_at_home,
    ),
    Step(
        "The listeners are in the pod",
        """A small process, put into web by nsenter, reads the kernel's list of sockets there,
        /proc/net/tcp. The demo reads the list at home, and the list of ztunnel's open files.""",
        ("csrc/visit.c: make_sockets()", "pyztun/ztunnel/workloads.py: add()"),
        SeedStory.listeners_are_in_the_pod,
        """Each arrow is one open file: its number belongs to a process at home, its socket to the
        pod. So there are listeners in web although no process is.""",
    ),
    Step(
        "A client in the pod is answered",
        """The small process in web now connects to 127.0.0.1, which is the pod's own. The answer
        comes from ztunnel, over the sockets that it holds.""",
        ("csrc/responder.c: answer_one()",),
        SeedStory.pod_is_answered,
    ),
    Step(
        "A second pod: the same process, the same ports",
        """Now db. Every netns has all ports for itself, so 15001 of db does not collide with 15001
        of web. One process serves both pods.""",
        ("pyztun/ztunnel/receiver.py: _take()",),
        SeedStory.second_pod,
    ),
    Step(
        "web is released",
        """pyztun-cni sends the netns of web once more, this time to release it. ztunnel closes its
        three sockets there, and nothing of it is left in the pod.""",
        ("pyztun/ztunnel/receiver.py: _release()", "pyztun/ztunnel/workloads.py: drop()"),
        SeedStory.release,
    ),
    Step(
        "A netns dies with its last holder",
        """A netns lives as long as a process, an fd or a socket holds it. Now the demo closes its
        own fds of both pods. Nothing holds web any more, so it dies. But db lives: the listeners in
        it are enough to hold it. Once they are released, by its cookie, db dies too.""",
        ("pyztun/ztunnel/receiver.py: _release_cookie()", "pyztun/tools/deathwatch.py: is_gone()"),
        SeedStory.netns_die,
    ),
)

SCRIPT = Script(TITLE, OPENING, RULES, STEPS, CLOSING, SeedStage, SeedStory)
