"""A check that cannot fail would prove nothing: one program does something else than was told.

The demo finds the programs beside itself. Here `pyztun` stands in a directory with the two others,
of which one does something else: the real program with a fault in libc (sabotage.c), or a script.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from demo_run import STEPS, DemoRun, require_nft

from support import peers
from support.programs import program

pytestmark = [pytest.mark.needs_netns, pytest.mark.slow]

SOURCE = Path(__file__).with_name("sabotage.c")
SHELL, PYTHON = "/bin/sh", sys.executable

# A fault in libc under pyztun-ztunnel -> the step that notices it, and what was told there.
FAULTS = {
    "stays in the pod": (4, "every thread of ztunnel is at home"),
    "listens at home": (5, "the kernel lists in web"),
    "another port": (5, "the kernel lists in web"),
    "every address": (5, "the kernel lists in web"),
    "says nothing": (6, "127.0.0.1:15001 in web says"),
    "keeps the fd": (7, "ztunnel has no fd of a pod's netns open"),
    "keeps listening": (8, "nothing listens in web"),
    "keeps the second pod": (9, "the kernel reports the end of db"),
}

# A python program instead of pyztun-cni.
CNI = """
import sys
from pyztun import NetNs
from pyztun.cni.main import main
words = sys.argv[1:]
{change}
raise SystemExit(main(words))
"""
SENDS_NOTHING = """
print(f"{words[-1]}: sending fd 4", file=sys.stderr)
print("listeners ready")
raise SystemExit(0)
"""
SENDS_ANOTHER_NETNS = """
if "--verbose" in words:
    other = NetNs.create()
    words[-1] = f"fd:{other.fileno()}"
"""
PORT_IS_TAKEN = """
if "--verbose" in words:
    taken = NetNs.open(words[-1]).listen(("127.0.0.1", 15006))
"""
SAYS_NO_NUMBER = """
words = [word for word in words if word != "--verbose"]
"""
FORGETS_TO_RELEASE = """
if "--release" in words:
    print(f"released netns={NetNs.open(words[-1]).cookie}")
    raise SystemExit(0)
"""
LISTS_ONE_MORE = """
if "--list" in words:
    print("netns=7 127.0.0.1:15001")
"""
CNIS = {
    "sends nothing": (SENDS_NOTHING, 3, "the answer names web"),
    "sends another netns": (SENDS_ANOTHER_NETNS, 3, "the answer names web"),
    "port is taken": (PORT_IS_TAKEN, 3, "pyztun-cni printed"),
    "says no number": (SAYS_NO_NUMBER, 3, "pyztun-cni sent"),
    "lists one more": (LISTS_ONE_MORE, 7, "ztunnel says it serves web and db"),
    "forgets to release": (FORGETS_TO_RELEASE, 8, "nothing listens in web"),
}

# The same for --zds.
ZDS_FAULTS = {
    "stays in the pod": (4, "every thread of ztunnel is at home"),
    "listens at home": (4, "the kernel lists in web"),
    "another port": (4, "the kernel lists in web"),
    "says nothing": (4, "127.0.0.1:15001 in web, accepted but not redirected"),
    "keeps the fd": (5, "the kernel reports the end of the old netns of web"),
    "keeps listening": (5, "the kernel reports the end of the old netns of web"),
}
ADDS_NOTHING = """
if words[0] == "add":
    print(f"ready {words[-1]} uid={words[3]} netns={NetNs.open(words[1]).cookie}")
    raise SystemExit(0)
"""
ADDS_ANOTHER_NETNS = """
if words[0] == "add":
    other = NetNs.create()
    words[1] = f"fd:{other.fileno()}"
"""
LISTS_SOMEBODY = """
if words[0] == "list":
    print("NAME  NAMESPACE  UID  NETNS  COOKIE  SINCE  ZTUNNELS  STATE")
    print("x  default  x  x  7  1s  1  ready")
"""
DOES_NOT_WATCH = """
from pyztun.cni.agent.watch import Watch
Watch.check_mounted = lambda self: None
"""
FORGETS = """
import os
if words[0] == "agent":
    words[words.index("--state-dir") + 1] += str(os.getpid())
"""
DELETES_NOTHING = """
if words[0] == "del":
    print("deleted web uid=pod-1")
    raise SystemExit(0)
"""
LEAVES_ITS_SOCKETS = """
from pyztun.socketfile import SocketFile
SocketFile.remove = lambda self: None
"""
AGENTS = {
    "lists somebody": (LISTS_SOMEBODY, 1, "nobody is listed"),
    "adds nothing": (ADDS_NOTHING, 3, "web and db are listed as ready"),
    "adds another netns": (ADDS_ANOTHER_NETNS, 3, "ztunnel has confirmed web"),
    "does not watch": (DOES_NOT_WATCH, 5, "a client in web is accepted"),
    "forgets": (FORGETS, 7, "it found each netns again by its cookie"),
    "deletes nothing": (DELETES_NOTHING, 8, "nothing listens in web"),
    "leaves its sockets": (LEAVES_ITS_SOCKETS, 9, "the agent removes both its socket files"),
}

# A python program instead of pyztun-ztunnel.
ZTUNNEL = """
import os
from pyztun import native
from pyztun.ztunnel.main import main
from pyztun.ztunnel.zds_receiver import ZdsReceiver
{change}
raise SystemExit(main())
"""
ENDS_WITH_THE_AGENT = "ZdsReceiver._closed = lambda self: os._exit(3)"
STARTS_ANEW = "native.is_listening = lambda fd: False"
IGNORES_ADDS = "ZdsReceiver._has_room = lambda self: False; ZdsReceiver._add = ZdsReceiver._agree"
DIES_AT_A_DEL = "ZdsReceiver._delete = lambda self, uid: os._exit(3)"
ENDS_WITH_AN_ERROR = "main = lambda ended=main: ended() or 7"
ZTUNNELS = {
    "ignores the adds": (IGNORES_ADDS, 3, "ztunnel holds by an fd the netns of"),
    "ends with the agent": (ENDS_WITH_THE_AGENT, 7, "clients in web and db are accepted meanwhile"),
    "starts anew": (STARTS_ANEW, 7, "ztunnel listens with the same sockets as before"),
    "dies at a deletion": (DIES_AT_A_DEL, 8, "127.0.0.1:15001 in db, accepted but not redirected"),
    "ends with an error": (ENDS_WITH_AN_ERROR, 9, "ztunnel ends on SIGTERM"),
}

# The same for --capture.
CAPTURES_NOTHING = """
if words[0] == "add":
    main([*words, "--capture", "none"])
    print("connections from before were reset")
    raise SystemExit(0)
"""
LEAVES_THE_RULES = """
if words[0] == "del":
    print(f"deleted web uid={words[1]}")
    raise SystemExit(0)
"""
CAPTURE_AGENTS = {
    "captures nothing": (CAPTURES_NOTHING, 3, "a connection from before"),
    "leaves the rules": (LEAVES_THE_RULES, 8, "no rule is left in web"),
}
CAPTURE_FAULTS = {
    "pyztun-ztunnel": ("own source", 4, "the server saw the address of cache"),
    "pyztun-cni": ("hears no news", 7, "the rules in cache are back"),
}

Sabotage = Callable[..., DemoRun]


@pytest.fixture
def sabotage(directory: Path) -> Iterator[Sabotage]:
    """A function that starts a demo in which one program is replaced by a script."""
    (bin_directory := directory / "bin").mkdir()
    (tmp := directory / "tmp").mkdir()

    def write(name: str, interpreter: str, text: str) -> None:
        path = bin_directory / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)

    for name in ("pyztun-cni", "pyztun-ztunnel"):
        (bin_directory / name).symlink_to(program(name)[-1])
    write("pyztun", PYTHON, "from pyztun.tools.main import main\nraise SystemExit(main())")
    with ExitStack() as stack:

        def start(name: str, interpreter: str, text: str, *form: str) -> DemoRun:
            if interpreter == SHELL:
                text = f"REAL={shlex.quote(program(name)[-1])}\n{text}"
            write(name, interpreter, text)
            command = [str(bin_directory / "pyztun")]
            return stack.enter_context(DemoRun(tmp, "--plain", *form, command=command))

        yield start


@pytest.fixture(scope="module")
def faulty_libc() -> Iterator[Path]:
    """The library of sabotage.c."""
    compiler = peers.compiler("c")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = Path(tempfile.mkdtemp(prefix="pz-sabotage-"))
    library = directory / "sabotage.so"
    flags = [*peers.C_FLAGS, "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    yield library
    shutil.rmtree(directory)


def check_noticed(run: DemoRun, step: int, told: str) -> None:
    """The demo shows the observation that failed, ends there with 1, and leaves nothing."""
    assert run.finish() == 1, "\n".join(run.out)
    shown = "\n".join(run.out)
    assert run.err == []
    assert f"[FAILED] told: {told}" in shown, shown
    assert f"[{step}/{STEPS}]" in shown
    assert f"[{step + 1}/{STEPS}]" not in shown
    assert run.out[-1].endswith("not as told.")
    assert run.seconds < 20
    assert run.left_behind() == []


def test_the_same_way_without_a_fault(sabotage: Sabotage, faulty_libc: Path) -> None:
    run = sabotage("pyztun-ztunnel", SHELL, f'exec env LD_PRELOAD={faulty_libc} "$REAL" "$@"')
    assert run.finish() == 0, "\n".join(run.out)
    assert run.left_behind() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_under_ztunnel(sabotage: Sabotage, faulty_libc: Path, fault: str) -> None:
    environment = f"LD_PRELOAD={faulty_libc} SABOTAGE={shlex.quote(fault)}"
    run = sabotage("pyztun-ztunnel", SHELL, f'exec env {environment} "$REAL" "$@"')
    check_noticed(run, *FAULTS[fault])


def test_ztunnel_that_starts_away(sabotage: Sabotage) -> None:
    run = sabotage("pyztun-ztunnel", SHELL, 'exec unshare --net "$REAL" "$@"')
    check_noticed(run, 2, "ztunnel is at home")


def test_ztunnel_that_reports_something_else(sabotage: Sabotage) -> None:
    text = "import os, socket, sys\n"
    text += "to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    text += "to.sendto(b'STATUS=late', os.environ.pop('NOTIFY_SOCKET'))\n"
    text += f"os.execv({program('pyztun-ztunnel')[-1]!r}, sys.argv)"
    check_noticed(sabotage("pyztun-ztunnel", PYTHON, text), 2, "ztunnel, pid")


def test_ztunnel_that_ends_with_an_error(sabotage: Sabotage) -> None:
    text = "from pyztun.ztunnel.main import main\nraise SystemExit(main() or 7)"
    check_noticed(sabotage("pyztun-ztunnel", PYTHON, text), 9, "ztunnel ends on SIGTERM")


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("fault", ZDS_FAULTS)
def test_fault_under_ztunnel_of_a_node(sabotage: Sabotage, faulty_libc: Path, fault: str) -> None:
    environment = f"LD_PRELOAD={faulty_libc} SABOTAGE={shlex.quote(fault)}"
    run = sabotage("pyztun-ztunnel", SHELL, f'exec env {environment} "$REAL" "$@"', "--zds")
    check_noticed(run, *ZDS_FAULTS[fault])


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("what", ZTUNNELS)
def test_ztunnel_of_a_node(sabotage: Sabotage, what: str) -> None:
    change, step, told = ZTUNNELS[what]
    run = sabotage("pyztun-ztunnel", PYTHON, ZTUNNEL.format(change=change), "--zds")
    check_noticed(run, step, told)


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("what", AGENTS)
def test_agent(sabotage: Sabotage, what: str) -> None:
    change, step, told = AGENTS[what]
    run = sabotage("pyztun-cni", PYTHON, CNI.format(change=change), "--zds")
    check_noticed(run, step, told)


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("what", CAPTURE_AGENTS)
def test_agent_that_captures(sabotage: Sabotage, what: str) -> None:
    require_nft()
    change, step, told = CAPTURE_AGENTS[what]
    run = sabotage("pyztun-cni", PYTHON, CNI.format(change=change), "--capture")
    check_noticed(run, step, told)


@pytest.mark.needs_named_netns
@pytest.mark.parametrize("name", CAPTURE_FAULTS)
def test_fault_where_pods_are_captured(sabotage: Sabotage, faulty_libc: Path, name: str) -> None:
    require_nft()
    fault, step, told = CAPTURE_FAULTS[name]
    environment = f"LD_PRELOAD={faulty_libc} SABOTAGE={shlex.quote(fault)}"
    run = sabotage(name, SHELL, f'exec env {environment} "$REAL" "$@"', "--capture")
    check_noticed(run, step, told)


@pytest.mark.needs_named_netns
def test_ztunnel_that_serves_no_captured_pod(sabotage: Sabotage) -> None:
    require_nft()
    run = sabotage("pyztun-ztunnel", PYTHON, ZTUNNEL.format(change=IGNORES_ADDS), "--capture")
    check_noticed(run, 4, "the client's peer is, in cache")


@pytest.mark.parametrize("what", CNIS)
def test_cni(sabotage: Sabotage, what: str) -> None:
    change, step, told = CNIS[what]
    check_noticed(sabotage("pyztun-cni", PYTHON, CNI.format(change=change)), step, told)


def test_reason_of_a_refusal_is_shown(sabotage: Sabotage) -> None:
    run = sabotage("pyztun-cni", PYTHON, CNI.format(change=PORT_IS_TAKEN))
    assert run.finish() == 1
    shown = " ".join(" ".join(run.out).split())
    assert "bind 127.0.0.1:15006 in the pod: EADDRINUSE" in shown


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no mood today >&2; exit 3", "pyztun-ztunnel ended: exit status 3, no mood today"),
        ('exec env -u NOTIFY_SOCKET "$REAL" "$@"', "pyztun-ztunnel stays silent: still runs"),
    ],
)
def test_ztunnel_that_does_not_start(sabotage: Sabotage, script: str, reason: str) -> None:
    run = sabotage("pyztun-ztunnel", SHELL, script)
    assert run.finish() == 1
    assert len(run.err) == 1
    assert run.err[0].startswith(f"pyztun demo: {reason}")
    assert run.left_behind() == []


def test_ztunnel_that_dies_in_the_pod(sabotage: Sabotage, faulty_libc: Path) -> None:
    environment = f"LD_PRELOAD={faulty_libc} SABOTAGE='dies in the pod'"
    run = sabotage("pyztun-ztunnel", SHELL, f'exec env {environment} "$REAL" "$@"')
    assert run.finish() == 1
    assert len(run.err) == 1
    assert run.err[0].startswith("pyztun demo: pyztun-ztunnel ended: exit status 9")
    assert run.left_behind() == []
