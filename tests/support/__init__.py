"""Shared test tools: real namespaces, real processes, real sockets; nothing is replaced or faked.

    needs       what this host allows (root, named netns, user namespaces): skip reasons
    pods        a netns by name, sockets in it, and the proof that it died
    programs    the installed commands as processes: Daemon, cni()
    wire        a raw client of the seed form: Peer, request()
    leaks       descriptors, threads, children, memory and netns of a process
    project     a stranger's project with test files, and pytest run in it
    peers       the two peers built from the walk-through, in Go and in C
    privilege   command prefixes: uid 4242 with only CAP_SYS_ADMIN, without any, in a userns

Test modules import them as `from support.pods import Pod`; the fixtures are in tests/conftest.py.
No test sleeps to synchronise: it waits for a line, a readable socket, a process's end.
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
