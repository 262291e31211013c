"""Builds the two peers of tests/peers, in Go where it is installed and in C.

    python tests/support/peers.py DIRECTORY      builds what can be built here and prints the paths

They are what a stranger writes from the walk-through; what they do and their flags stand at the
top of their sources.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "peers"
LANGUAGES = ("go", "c")
NAMES = ("cni_emulator", "ztunnel_emulator")
C_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror")


@functools.cache
def compiler(language: str) -> str | None:
    """The compiler for LANGUAGE, None if there is none."""
    if language == "go":
        return shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def build(language: str, directory: Path) -> dict[str, Path]:
    """Compiles both peers to DIRECTORY/LANGUAGE/NAME; CalledProcessError if that fails."""
    tool = compiler(language)
    assert tool is not None, f"no compiler for {language}"
    target = directory / language
    target.mkdir(parents=True, exist_ok=True)
    if language == "go":
        _build_go(tool, target)
    else:
        for name in NAMES:
            source = str(SOURCES / "c" / f"{name}.c")
            _run([tool, *C_FLAGS, "-o", str(target / name), source])
    return {name: target / name for name in NAMES}


def _build_go(tool: str, target: Path) -> None:
    """Standard library only: nothing may be fetched, no C compiler and no git is asked."""
    env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
    }
    argv = [tool, "build", "-buildvcs=false", "-o", f"{target}/", *(f"./{name}" for name in NAMES)]
    with tempfile.TemporaryDirectory(prefix="pz-go-") as scratch:
        if not os.access(os.environ.get("HOME", ""), os.W_OK):
            env |= {"GOCACHE": f"{scratch}/cache", "GOPATH": f"{scratch}/path"}
        _run(argv, SOURCES / "go", env)


def _run(argv: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run(argv, cwd=cwd, env=env, check=True)


if __name__ == "__main__":
    for each in filter(compiler, LANGUAGES):
        for path in build(each, Path(sys.argv[1])).values():
            print(path)
