"""The lanes of the relay rows: that what is measured went where the rows say it went."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import pytest

from bench import inpod, programs, relay_haproxy, relay_lanes, report
from bench.relay_lanes import HAPROXY, OURS, Lane
from bench.statistics import Check, Row
from support import REPOSITORY


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> programs.Workshop:
    """Compiles the programs once."""
    return programs.Workshop(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def lane_of(name: str, stack: ExitStack, shop: programs.Workshop) -> Lane:
    try:
        made = {HAPROXY: relay_lanes.haproxy, OURS: relay_lanes.ours}.get(name, relay_lanes.direct)
        return made(stack, shop)
    except programs.Skipped as reason:
        pytest.skip(str(reason))


def counted(lane: Lane, verdict: str) -> int:
    """Packets of the rules in the client's pod that end with VERDICT."""
    argv = inpod.inside(lane.pod, inpod.tool("nft"), "list", "ruleset")
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = re.findall(rf"counter packets (\d+) bytes \d+ {verdict}$", listed, re.MULTILINE)
    assert found, listed
    return sum(map(int, found))


@pytest.mark.needs_netns
def test_load_answers_with_as_many_numbers_as_it_was_asked_for(
    shop: programs.Workshop, stack: ExitStack
) -> None:
    lane = relay_lanes.direct(stack, shop)
    size, ns = lane.ask("stream 20")
    assert size > 1e6
    assert 20e6 <= ns < 1e9
    ns, stalled = lane.ask("short 20 8")
    assert 0 < ns < 0.9e9
    assert stalled == 0
    times = lane.ask("ping 5")
    assert len(times) == 5
    assert min(times) > 0
    assert lane.ask("hold 3") == [3]
    assert lane.ask("hold 2") == [5]
    assert lane.ask("drop") == [0]


@pytest.mark.needs_netns
def test_load_that_finds_no_server_ends_with_one_line(
    shop: programs.Workshop, stack: ExitStack
) -> None:
    lane = relay_lanes.direct(stack, shop)
    lane.server.close()
    with pytest.raises(programs.BenchError, match=r"^relay_load ended with 1: connect: Connection"):
        lane.ask("ping 1")


@pytest.mark.needs_netns
@pytest.mark.parametrize("name", [HAPROXY, OURS])
def test_every_connection_is_redirected_and_none_goes_around(
    name: str, shop: programs.Workshop, stack: ExitStack
) -> None:
    """A rule of nat counts the first packet of a connection; it sees none of a proxy's own."""
    lane = lane_of(name, stack, shop)
    before = lane.cpu()
    assert lane.ask("short 50 8")[1] == 0
    assert len(lane.ask("ping 2")) == 2
    assert lane.ask("stream 100")[0] > 1e6
    assert counted(lane, "redirect to :15001") == 52
    assert counted(lane, "reject with tcp reset") == 0
    proxy, together = (late - early for early, late in zip(before, lane.cpu(), strict=True))
    assert 0 < proxy < together


@pytest.mark.needs_netns
@pytest.mark.parametrize("name", [HAPROXY, OURS])
def test_without_its_proxy_nothing_passes(
    name: str, shop: programs.Workshop, stack: ExitStack
) -> None:
    lane = lane_of(name, stack, shop)
    lane.ask("ping 1")
    assert lane.proxy is not None
    os.kill(lane.proxy, signal.SIGKILL)
    os.waitid(os.P_PID, lane.proxy, os.WEXITED | os.WNOWAIT)
    with pytest.raises(programs.BenchError, match="connect: Connection refused"):
        lane.ask("ping 1")


@pytest.mark.needs_userns
def test_what_a_user_namespace_lacks_is_left_out_with_a_note(own_userns: list[str]) -> None:
    """HAProxy cannot change its uid there, and only root may look at the slabs."""
    done = bench("--only", "relay-idle", "--rounds", "1", wrap=own_userns)
    assert (done.returncode, done.stderr) == (0, "")
    if "skipped: nft is not installed" in done.stdout:
        return
    assert "note: without HAProxy: " in done.stdout
    assert "note: without the slabs of the kernel: " in done.stdout
    assert re.search(rf"^  {OURS}, median +[0-9.]+ KiB +1: PASS$", done.stdout, re.MULTILINE)


def bench(*args: str, wrap: list[str]) -> "subprocess.CompletedProcess[str]":
    argv = [*wrap, sys.executable, "-m", "bench", *args]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def processes_with(word: str) -> list[str]:
    """The command lines in which WORD occurs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def wait_until(true: Callable[[], object]) -> None:
    deadline = monotonic() + 30
    while not true():
        assert monotonic() < deadline
        sleep(0.005)


@pytest.mark.needs_netns
def test_interrupted_run_leaves_no_process_and_no_file(directory: Path) -> None:
    argv = [sys.executable, "-m", "bench", "--only", "relay-ping", "--rounds", "100000"]
    env = {**os.environ, "TMPDIR": str(directory)}
    word = f"{directory}/"
    with subprocess.Popen(
        argv, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: any("pyztun-ztunnel" in line for line in processes_with(word)))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, "bench: interrupted\n")
    wait_until(lambda: processes_with(word) == [])  # one that was told to end may be ending
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "verdict"), [(1.6, "PASS"), (1.5, "PASS"), (1.49, "over"), (0.0, "over")]
)
def test_budget_that_is_a_lower_bound(value: float, verdict: str) -> None:
    check = Check("ours", value, "x", 1.5, at_least=True)
    assert (check.verdict, check.over) == (verdict, verdict == "over")


def test_lower_bound_is_shown_as_one() -> None:
    row = Row("relay", "a stream", "Gb/s", {OURS: [10.0, 11.0], HAPROXY: [5.0, 5.5]})
    row.compare(OURS, HAPROXY, 1.5, 2, at_least=True)
    assert report.table(row).splitlines()[-2].split("HAProxy")[-1].strip() == ">= 1.5, aim 2: PASS"
    assert report.ending([row]) == "within budget: 1 of 1"


def test_configuration_has_the_threads_and_the_options_that_it_was_given() -> None:
    text = relay_haproxy.configuration(3, relay_haproxy.BULK)
    assert "\n    nbthread 3\n" in text
    assert "\n    option splice-request\n" in text
    assert "splice-auto" not in text
