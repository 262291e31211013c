"""`pyztun demo`: what it shows, how it ends, what it leaves behind."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_run import STEPS, DemoRun, OnTerminal, check_fits, one, require_nft

from support import needs
from support.programs import environment, program, run_program

pytestmark = pytest.mark.needs_netns

USER_NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
PROMPT = rb"Press Enter: \[(\d)/\d\] [^\x1b\n]*"


SEED: list[str] = []
ZDS = ["--zds"]
CAPTURE = ["--capture"]


@pytest.fixture(
    params=[SEED, pytest.param(ZDS, marks=pytest.mark.needs_named_netns)], ids=["seed", "zds"]
)
def form(request: pytest.FixtureRequest) -> list[str]:
    """The words that choose a form; one that captures needs nft too (test_demo_capture.py)."""
    chosen: list[str] = request.param
    return chosen


@pytest.fixture(params=[SEED, ZDS, CAPTURE], ids=["seed", "zds", "capture"])
def any_form(request: pytest.FixtureRequest) -> list[str]:
    """The same with all forms."""
    chosen: list[str] = request.param
    if chosen:
        needs.require("needs_named_netns")
    if chosen == CAPTURE:
        require_nft()
    return chosen


@pytest.fixture
def run(directory: Path) -> Iterator[DemoRun]:
    with DemoRun(directory, "--plain") as demo:
        yield demo


@pytest.fixture
def either(directory: Path, form: list[str]) -> Iterator[DemoRun]:
    """Either form."""
    with DemoRun(directory, "--plain", *form) as demo:
        yield demo


def test_all_is_as_told_and_nothing_is_left(either: DemoRun) -> None:
    assert either.finish() == 0, "\n".join(either.out + either.err)
    assert either.seconds < 15
    assert either.err == []
    assert "FAILED" not in "\n".join(either.out)
    count = sum(line.startswith("  [ok] ") for line in either.out)
    assert count > 30
    assert one(r"^All (\d+) observations were as told", either.out)[1] == str(count)
    check_fits(either.out)
    assert either.left_behind() == []


def test_evidence_of_the_issue(run: DemoRun) -> None:
    assert run.finish() == 0
    out = run.out
    home, web, db = one(r"three different netns: (\d+), (\d+), (\d+)$", out).groups()
    assert len({home, web, db}) == 3
    pid = one(r"ztunnel, pid (\d+), reports: READY=1", out)[1]
    sent = one(r"pyztun-cni sent: (fd \d+)$", out)[1]
    received, sender = one(r"pyztun-ztunnel received: (fd \d+), from pid (\d+)", out).groups()
    one(rf"pyztun-cni, pid {sender} +pyztun-ztunnel, pid {pid}$", out)
    one(rf" {sent}  -+ Unix socket, SCM_RIGHTS -+>  {received}$", out)
    for name, cookie in (("web", web), ("home", home), ("ztunnel", home)):
        one(rf"^    {name} +{cookie} +{cookie} +{cookie}$", out)
    reads = int(one(rf"ztunnel was at home all the time: cookie {home} in (\d+) reads", out)[1])
    assert reads >= 5
    for name in ("web", "db"):
        one(rf"no process is in {name}: 0 processes$", out)
        one(rf"lists in {name}: 127\.0\.0\.1:15001, 127\.0\.0\.1:15006, 127\.0\.0\.1:15008$", out)
    one(r"at home it lists none of ztunnel's: 0 of the 0 LISTEN sockets there", out)
    for port in (15001, 15006, 15008):
        fd = one(rf"\|   (fd \d+) -+\|-+>\| LISTEN 127\.0\.0\.1:{port} +\(socket \d+\)", out)[1]
        one(rf"these sockets are ztunnel's: .*{port} = {fd}\b", out)
        one(rf"127\.0\.0\.1:{port} in web says: 'ok\\n'", out)
    one(r"127\.0\.0\.1:15002 in web, where none is: refused", out)
    one(rf"printed: released netns={web}$", out)
    one(rf"printed: released netns={db}$", out)
    one(r"the kernel reports the end of web: netlink message RTM_DELNSID", out)
    one(r"the kernel reports the end of db: netlink message RTM_DELNSID", out)


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGTERM, 5), (signal.SIGHUP, 7)],
)
def test_interrupted_at_work_it_cleans_up(run: DemoRun, number: int, step: int) -> None:
    run.process.stdout.wait_for(f"[{step}/{STEPS}]")
    run.process.process.send_signal(number)
    assert run.finish() == 1
    assert run.err == ["pyztun demo: interrupted; everything is cleaned up"]
    assert not any(line.startswith(f"[{STEPS}/{STEPS}]") for line in run.out)
    assert run.left_behind() == []


def test_end_of_stdin_counts_as_enter(directory: Path, form: list[str]) -> None:
    with DemoRun(directory, "--pause", "--plain", *form) as run:
        assert run.finish() == 0
        assert sum("Press Enter" in line for line in run.out) == STEPS
        assert run.left_behind() == []


def test_reader_that_leaves_is_no_traceback(directory: Path) -> None:
    command = ["sh", "-c", '"$@" | head -n 3; exit 0', "sh", *program("pyztun")]
    with DemoRun(directory, "--plain", command=command) as run:
        assert run.finish() == 0
        assert len(run.out) == 3
        assert run.err == []
        assert run.left_behind() == []


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [(">/dev/full", "[Errno 28] No space left on device"), (">&-", "stdout is closed")],
)
def test_stdout_that_takes_nothing(directory: Path, stdout: str, reason: str) -> None:
    command = ["sh", "-c", f'"$@" {stdout}', "sh", *program("pyztun")]
    with DemoRun(directory, command=command) as run:
        assert run.finish() == 1
        assert run.err == [f"pyztun demo: {reason}"]
        assert run.left_behind() == []


def test_directory_whose_name_is_too_long(directory: Path, form: list[str]) -> None:
    long = directory / ("x" * 100)
    long.mkdir()
    with DemoRun(directory, *form, env={"TMPDIR": str(long)}) as run:
        assert run.finish() == 1
        assert len(run.err) == 1
        assert run.err[0].endswith("/notify-1: AF_UNIX path too long")
        assert list(long.iterdir()) == []


# ---- on a terminal -----------------------------------------------------------------------------


def test_pause_waits_for_enter_before_each_step(directory: Path, form: list[str]) -> None:
    with OnTerminal(directory, "--pause", *form) as demo:
        for number in range(1, STEPS + 1):
            assert demo.read_to(PROMPT) == str(number).encode()
            shown = re.findall(rb"\x1b\[1m\[(\d)/", demo.text)
            assert shown == [str(n).encode() for n in range(1, number)]
            demo.type(b"\n")
        assert demo.finish() == 0, demo.text
        assert b"\x1b[1A\x1b[2K" in demo.text


def test_ctrl_c_at_the_prompt(directory: Path, form: list[str]) -> None:
    with OnTerminal(directory, "--pause", *form) as demo:
        for _ in range(3):
            demo.read_to(PROMPT)
            demo.type(b"\n")
        demo.read_to(PROMPT)
        demo.type(b"\x03")
        assert demo.finish() == 1
        assert demo.err == "pyztun demo: interrupted; everything is cleaned up\n"
        assert list(directory.iterdir()) == []


def test_colour_on_a_terminal(directory: Path, form: list[str]) -> None:
    with OnTerminal(directory, *form) as demo:
        assert demo.finish() == 0
        assert b"\x1b[" in demo.text
        without = re.sub(rb"\x1b\[[0-9;]*m", b"", demo.text)
        assert b"\x1b" not in without
        assert max(map(len, without.decode().splitlines())) <= 100


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_it_is_not_wanted(directory: Path, env: dict[str, str]) -> None:
    with OnTerminal(directory, *([] if env else ["--plain"]), env=env) as demo:
        assert demo.finish() == 0
        assert b"\x1b" not in demo.text


# ---- privilege ---------------------------------------------------------------------------------


@pytest.fixture
def unprivileged(no_capability: list[str]) -> list[str]:
    """A command prefix: no capability; also where the tests are root of a user namespace."""
    if no_capability or os.geteuid() != 0:
        return no_capability
    # Who maps uid 0 of a user namespace into another one needs CAP_SETFCAP.
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+setfcap"]


@pytest.mark.needs_userns
def test_in_a_user_namespace_without_root(no_capability: list[str], directory: Path) -> None:
    """Whoever runs it has nothing but a user namespace, and cannot write under /run."""
    directory.chmod(0o777)
    done = run_program(
        "pyztun",
        "demo",
        wrap=[*no_capability, *USER_NAMESPACE],
        env={"TMPDIR": str(directory)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(directory.iterdir()) == []


def test_without_privilege_one_clear_line(unprivileged: list[str], any_form: list[str]) -> None:
    done = run_program("pyztun", "demo", *any_form, wrap=unprivileged)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pyztun demo: needs root, or a user namespace")
    assert " ".join(USER_NAMESPACE) in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr


@pytest.mark.needs_userns
def test_the_line_can_be_typed(unprivileged: list[str], any_form: list[str]) -> None:
    """What it proposes to somebody without privilege works for them."""
    refused = run_program("pyztun", "demo", *any_form, wrap=unprivileged)
    proposed = re.search(r": (unshare .*?) \(", refused.stderr)
    assert proposed, refused.stderr
    done = subprocess.run(
        [*unprivileged, "sh", "-c", proposed[1]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(" ".join(["pyztun demo", *any_form]) + ": ")


@pytest.mark.needs_userns
def test_user_namespace_that_does_not_own_home(no_capability: list[str]) -> None:
    """Without --net the netns is still the machine's: ztunnel could not come home."""
    wrap = [*no_capability, "unshare", "--user", "--map-root-user", "--mount"]
    done = run_program("pyztun", "demo", wrap=wrap)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "needs CAP_NET_ADMIN over our own netns" in done.stderr


# ---- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--help",), ("demo", "--help"), ("--version",)])
def test_help_and_version(words: tuple[str, ...]) -> None:
    done = run_program("pyztun", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pyztun" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "words",
    [(), ("demonstrate",), ("demo", "now"), ("demo", "--pl"), ("demo", "--zds", "--capture")],
)
def test_usage(words: tuple[str, ...]) -> None:
    done = run_program("pyztun", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: pyztun" in done.stderr
