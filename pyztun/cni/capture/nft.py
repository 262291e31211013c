"""nft: a text for nftables, run in the netns of the calling thread.

libnftables where it can be loaded (a millisecond a text), else the program nft (six). The netlink
socket of a context belongs to the netns in which nft_ctx_new() ran, so each text has a context of
its own.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import Final, Protocol

from pyztun.errors import PyztunError, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIBRARY: Final = "libnftables.so.1"
PROGRAM: Final = "nft"
PROGRAM_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin"
"""Where nft may be, besides PATH: that of a service often lacks these."""
PROGRAM_SECONDS: Final = 5.0
MAX_ERROR: Final = 300
FREE_FDS: Final = 8

STATELESS, NUMERIC = 1 << 2, 0b1111 << 7
"""NFT_CTX_OUTPUT_STATELESS, _NUMERIC_ALL: a listing without counters, names and /etc/protocols."""

_DECLARATIONS: Final = """
struct nft_ctx;
struct nft_ctx *nft_ctx_new(uint32_t flags);
void nft_ctx_free(struct nft_ctx *ctx);
int nft_ctx_buffer_output(struct nft_ctx *ctx);
const char *nft_ctx_get_output_buffer(struct nft_ctx *ctx);
int nft_ctx_buffer_error(struct nft_ctx *ctx);
const char *nft_ctx_get_error_buffer(struct nft_ctx *ctx);
void nft_ctx_output_set_flags(struct nft_ctx *ctx, unsigned int flags);
int nft_run_cmd_from_buffer(struct nft_ctx *nft, const char *buf);
"""


class NftError(PyztunError):
    """nftables refused a text, or cannot be used at all. One line."""


class Nft(Protocol):
    """Whatever runs texts."""

    def run(self, text: str) -> str:
        """Runs one text, all or nothing, in the netns of the calling thread; returns what it lists.

        :raises NftError: what is wrong, in one line.
        """
        ...


def find() -> Nft:
    """libnftables, or else nft. NftError names both."""
    try:
        return Library()
    except OSError as error:
        why = str(error).partition("\n")[0]
    path = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=PROGRAM_PATH)
    if path is None:
        raise NftError(f"no nftables here: neither {LIBRARY} ({why}) nor the program {PROGRAM}")
    return Program(path)


class Library:
    """libnftables, loaded at run time: whoever captures nothing need not have it. OSError."""

    def __init__(self) -> None:
        from cffi import FFI

        self._ffi: Any = FFI()
        self._ffi.cdef(_DECLARATIONS)
        self._lib: Any = self._ffi.dlopen(LIBRARY)

    def run(self, text: str) -> str:
        """See Nft."""
        _check_room()
        lib, context = self._lib, self._lib.nft_ctx_new(0)
        if not context:
            raise NftError("nft_ctx_new: no memory")
        try:
            lib.nft_ctx_output_set_flags(context, STATELESS | NUMERIC)
            if lib.nft_ctx_buffer_output(context) or lib.nft_ctx_buffer_error(context):
                raise NftError("nft_ctx_buffer_output: no memory")
            if lib.nft_run_cmd_from_buffer(context, text.encode()):
                raise NftError(f"libnftables: {_one_line(self._text(lib, 'error', context))}")
            return self._text(lib, "output", context)
        finally:
            lib.nft_ctx_free(context)

    def _text(self, lib: Any, which: str, context: Any) -> str:
        buffer = getattr(lib, f"nft_ctx_get_{which}_buffer")(context)
        return "" if not buffer else str(self._ffi.string(buffer).decode("utf-8", "replace"))


class Program:
    """`nft -f -`, which inherits the netns of the calling thread."""

    def __init__(self, path: str) -> None:
        self._argv = [path, "--stateless", "--numeric", "--file", "-"]

    def run(self, text: str) -> str:
        """See Nft. Blocks for PROGRAM_SECONDS at most."""
        try:
            done = subprocess.run(
                self._argv,
                input=text.encode(),
                capture_output=True,
                timeout=PROGRAM_SECONDS,
                env={"PATH": PROGRAM_PATH, "LC_ALL": "C"},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NftError(f"{self._argv[0]}: no answer in {PROGRAM_SECONDS:.0f} s") from error
        except OSError as error:
            raise NftError(str(explain(error.errno or 0, "exec", self._argv[0]))) from error
        if done.returncode != 0:
            said = _one_line(done.stderr.decode("utf-8", "replace"))
            raise NftError(f"{self._argv[0]}: {said or f'exit code {done.returncode}'}")
        return done.stdout.decode("utf-8", "replace")


def _check_room() -> None:
    """nft_ctx_new() ends the whole process where it can open no socket: see mnl_socket_open()."""
    held: list[int] = []
    try:
        held.extend(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(FREE_FDS))
    except OSError as error:
        raise NftError(
            str(explain(error.errno or errno.EMFILE, "open", "for libnftables"))
        ) from error
    finally:
        for fd in held:
            os.close(fd)


def _one_line(text: str) -> str:
    """The first line that says something: the others quote the text and point into it."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line), "")[:MAX_ERROR]
