"""Runs a command on a kernel that seems older: chosen calls fail as they do there (seccomp).

    python zt_oldkernel.py id,cookie COMMAND ARGS...

id      ioctl NS_GET_ID fails with ENOTTY, as before Linux 6.18
cookie  getsockopt SO_NETNS_COOKIE fails with ENOPROTOOPT, as before Linux 5.14
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

NS_GET_ID = 0x8008B70D  # _IOR(0xb7, 13, u64)
SO_NETNS_COOKIE = 71

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
IOCTL = {"x86_64": 16, "aarch64": 29}
GETSOCKOPT = {"x86_64": 55, "aarch64": 209}
MACHINE = platform.machine()

LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
NUMBER_AT, ARCH_AT, SECOND_ARGUMENT_AT, THIRD_ARGUMENT_AT = 0, 4, 24, 32
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER_MODE = 38, 22, 2


def available() -> bool:
    """Whether this machine's system call numbers are known here."""
    return MACHINE in AUDIT_ARCH


def prefix(*what: str) -> list[str]:
    """The command prefix; it ends in exec, so that the pid stays."""
    return [sys.executable, str(Path(__file__).resolve()), ",".join(what)]


def _step(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _fail(call: int, argument_at: int, value: int, number: int) -> bytes:
    """That call with that argument returns -NUMBER; five steps, which any other call jumps over."""
    return b"".join(
        [
            _step(LOAD, 0, 0, NUMBER_AT),
            _step(JUMP_EQUAL, 0, 3, call),
            _step(LOAD, 0, 0, argument_at),
            _step(JUMP_EQUAL, 0, 1, value),
            _step(RETURN, 0, 0, ERRNO | number),
        ]
    )


def _program(what: list[str]) -> bytes:
    steps = [
        _step(LOAD, 0, 0, ARCH_AT),
        _step(JUMP_EQUAL, 1, 0, AUDIT_ARCH[MACHINE]),
        _step(RETURN, 0, 0, ALLOW),
    ]
    if "id" in what:
        steps.append(_fail(IOCTL[MACHINE], SECOND_ARGUMENT_AT, NS_GET_ID, errno.ENOTTY))
    if "cookie" in what:
        call = GETSOCKOPT[MACHINE]
        steps.append(_fail(call, THIRD_ARGUMENT_AT, SO_NETNS_COOKIE, errno.ENOPROTOOPT))
    return b"".join([*steps, _step(RETURN, 0, 0, ALLOW)])


def install(what: list[str]) -> None:
    """Puts the filter on this process and all that it will ever run."""
    code = _program(what)
    steps = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HP", len(code) // 8, ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, FILTER_MODE, filter_, 0, 0
    ):
        raise SystemExit(f"prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    install(sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
