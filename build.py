"""Defines the cffi builders. Each interface is cut out of its header in csrc, never retyped.

A hand-copied cdef with a wrong integer width compiles without a warning and returns garbage, so the
one header that the C compiler checks is also what cffi reads.

PYZTUN_SANITIZE=address,undefined (or thread) builds the extension with those sanitizers.
"""

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
CORE = [
    "csrc/closer.c",
    "csrc/fdpass.c",
    "csrc/handoff.c",
    "csrc/listen.c",
    "csrc/netns.c",
    "csrc/netns_create.c",
    "csrc/request.c",
    "csrc/responder.c",
    "csrc/seats.c",
    "csrc/step.c",
    "csrc/thread.c",
    "csrc/visit.c",
    "csrc/zds.c",
    "csrc/zds_add.c",
    "csrc/zds_known.c",
]
HEADERS = [
    "csrc/closer.h",
    "csrc/internal.h",
    "csrc/pyztun.h",
    "csrc/relay.h",
    "csrc/relay_internal.h",
    "csrc/request.h",
    "csrc/seats.h",
    "csrc/zds_known.h",
]
# A second extension, which only services that relay load: the first one stays quick to import.
RELAY = [
    "csrc/relay.c",
    "csrc/relay_door.c",
    "csrc/relay_flow.c",
    "csrc/relay_journal.c",
    "csrc/relay_log.c",
    "csrc/relay_pump.c",
    "csrc/relay_verdict.c",
    # Of the core, compiled once more: how a socket is made in a pod.
    "csrc/fdpass.c",
    "csrc/listen.c",
    "csrc/netns.c",
    "csrc/thread.c",
    "csrc/visit.c",
]
BEGIN, END = "/* cdef: begin */", "/* cdef: end */"
CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow", "-fvisibility=hidden"]


def cut_cdef(header: str) -> str:
    """Returns the text between the two markers; a missing or doubled marker fails the build."""
    if header.count(BEGIN) != 1 or header.count(END) != 1:
        raise SystemExit(f"build.py: the header needs one {BEGIN!r} and one {END!r}")
    return header.split(BEGIN)[1].split(END, maxsplit=1)[0]


def sanitizer_flags() -> list[str]:
    kinds = os.environ.get("PYZTUN_SANITIZE")
    if not kinds:
        return []
    # Python's own CFLAGS bring -fwrapv, which would hide signed overflow from UBSan.
    return [f"-fsanitize={kinds}", "-fno-sanitize-recover=all", "-fno-wrapv", "-g", "-O1"]


def builder(module: str, header: str, sources: list[str]) -> FFI:
    made = FFI()
    made.cdef(cut_cdef((ROOT / "csrc" / header).read_text()))
    made.set_source(
        module,
        f'#include "{header}"',
        sources=sources,
        depends=HEADERS,
        include_dirs=["csrc"],
        extra_compile_args=CFLAGS + sanitizer_flags(),
        extra_link_args=["-pthread", *sanitizer_flags()],
    )
    return made


ffibuilder = builder("pyztun._core", "pyztun.h", CORE)
relay_builder = builder("pyztun._relay", "relay.h", RELAY)
