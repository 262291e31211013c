"""The fuzz target builds and runs: two seconds of it, and a broken core is found by it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support import REPOSITORY

FUZZ = REPOSITORY / "tests/fuzz"
pytestmark = pytest.mark.slow


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", "-s", "-C", str(FUZZ), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(autouse=True)
def _clang(tmp_path: Path) -> None:
    """clang with the runtime of its fuzzer, which Debian has in a package of its own."""
    if shutil.which("clang") is None or shutil.which("make") is None:
        pytest.skip("needs clang and make")
    source = tmp_path / "empty.c"
    source.write_text(
        "int LLVMFuzzerTestOneInput(const char *data, unsigned long size);\n"
        "int LLVMFuzzerTestOneInput(const char *data, unsigned long size)\n"
        "{ (void)data; return size > 1000000; }\n"
    )
    argv = ["clang", "-fsanitize=fuzzer,address", "-o", str(tmp_path / "empty"), str(source)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip("needs the runtime of clang's fuzzer (Debian: libclang-rt-14-dev)")


def test_two_seconds(tmp_path: Path) -> None:
    done = make("run", "SECONDS=2", f"BUILD={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = int(done.stdout.split("stat::number_of_executed_units:")[1].split()[0])
    assert runs > 20
    assert list((tmp_path / "corpus").iterdir()) != []


CLOSES = [
    ("handoff.c", "pz_closer_take(h->closer, fds[i]);"),
    ("zds.c", "pz_closer_take(z->closer, fds[i]);"),
]


@pytest.mark.parametrize(("name", "closes"), CLOSES)
def test_a_leak_is_found_and_its_input_named(tmp_path: Path, name: str, closes: str) -> None:
    """In a copy of the core that forgets to close what it will not hand over."""
    shutil.copytree(REPOSITORY / "csrc", tmp_path / "csrc")
    broken = tmp_path / "csrc" / name
    text = broken.read_text()
    assert text.count(closes) == 1
    broken.write_text(text.replace(closes, "(void)fds;"))
    done = make("run", "SECONDS=20", f"BUILD={tmp_path}", f"CSRC={tmp_path}/csrc")
    assert done.returncode != 0
    named = done.stdout.split("broken by: ")[1].split()[0]
    assert os.path.getsize(named) > 0
    again = make("try", f"INPUT={named}", f"BUILD={tmp_path}", f"CSRC={tmp_path}/csrc")
    assert again.returncode != 0
