"""libnftables, the program nft in its place, and neither."""

import os
import resource
import shutil
from contextlib import suppress

import pytest

from capture.kit import ALL, Side, is_whole
from pyztun import NetNs
from pyztun.cni.capture import nft, rules
from pyztun.cni.capture.inpod import InPod
from support import pods
from support.nftables import require_nftables, run_nft

WITHOUT_LIBRARY = """
import sys
from pyztun.cni.capture import nft, podside
nft.LIBRARY = "libnone.so.1"
{more}
sys.exit(podside.main(sys.argv))
"""


@pytest.fixture
def program() -> nft.Program:
    require_nftables()
    path = shutil.which("nft") or shutil.which("nft", path=nft.PROGRAM_PATH)
    if path is None:
        pytest.skip("no program nft here")
    return nft.Program(path)


def test_both_list_the_same(netns: NetNs, program: nft.Program) -> None:
    library = nft.Library()

    def lists(runner: nft.Nft) -> str:
        return pods.in_netns(netns.fileno(), lambda: runner.run(rules.LIST))

    for writer in (library, program):
        pods.in_netns(netns.fileno(), lambda: writer.run(rules.REPLACE))  # noqa: B023
        assert lists(library) == lists(program) != ""


def test_errors_are_one_line(netns: NetNs, program: nft.Program) -> None:
    for runner in (nft.Library(), program):
        with pytest.raises(nft.NftError, match=r"^(libnftables|/.*/nft): .*syntax error") as raised:
            pods.in_netns(netns.fileno(), lambda: runner.run("add nonsense\n"))  # noqa: B023
        assert "\n" not in str(raised.value)


def test_a_text_is_done_whole_or_not_at_all(netns: NetNs, program: nft.Program) -> None:
    text = "add table inet one\nadd chain inet two three\n"
    for runner in (nft.Library(), program):
        with pytest.raises(nft.NftError):
            pods.in_netns(netns.fileno(), lambda: runner.run(text))  # noqa: B023
        assert run_nft(netns, "list ruleset\n") == ""


def test_neither_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "LIBRARY", "libnone.so.1")
    monkeypatch.setattr(nft, "PROGRAM", "nft-of-nobody")
    with pytest.raises(nft.NftError, match=r"neither libnone\.so\.1 .* nor the program nft-of-no"):
        nft.find()


def test_capture_by_the_program(netns: NetNs, program: nft.Program) -> None:
    with Side(code=WITHOUT_LIBRARY.format(more="")) as side:
        assert side.done("capture", netns).written == ALL
        assert side.done("capture", netns).written == ()
        assert is_whole(netns)
        run_nft(netns, "flush ruleset\n")
        side.notice()
        assert is_whole(netns)
        side.done("release", netns)
    assert run_nft(netns, "list ruleset\n") == ""


def test_capture_by_nothing(netns: NetNs) -> None:
    with Side(code=WITHOUT_LIBRARY.format(more='nft.PROGRAM = "nft-of-nobody"')) as side:
        for do in ("capture", "release"):
            assert "neither libnone.so.1" in side.failed(do, netns)
        side.done("forget", netns)


def run_with_a_full_table() -> int:
    """libnftables itself would call exit(). Runs in a child: the limit is the process' own."""
    library = nft.Library()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with suppress(OSError):
        while True:
            os.dup(0)
    os.close(63)
    try:
        library.run("list ruleset\n")
    except nft.NftError as error:
        return 0 if str(error).startswith("open for libnftables: EMFILE") else 2
    return 3


def test_a_full_table_is_an_error_and_not_the_end() -> None:
    require_nftables()
    pid = os.fork()
    if pid == 0:
        status = 4
        try:
            status = run_with_a_full_table()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_more_pods_than_descriptors(side: Side) -> None:
    with Side("prlimit", "--nofile=70:70") as small:
        made = [NetNs.create() for _ in range(3)]
        assert small.done("capture", made[0]).written == ALL
        assert small.done("capture", made[1]).written == ALL
        assert "2 pods, as many as descriptors allow" in small.failed("capture", made[2])
        run_nft(made[0], "flush ruleset\n")
        small.notice()
        small.done("release", made[0])
        assert small.done("capture", made[2]).written == ALL
        for each in made:
            each.close()


def test_what_is_not_listed_as_written_is_an_error(netns: NetNs) -> None:
    """InPod did not learn what to expect, as if nft printed otherwise in this pod."""
    inpod = InPod(nft.Library())

    def put() -> None:
        inpod.put(None)

    with pytest.raises(nft.NftError, match="lists other rules"):
        pods.in_netns(netns.fileno(), put)
