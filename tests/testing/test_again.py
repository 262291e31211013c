"""pytest as an ordinary user: run again in a user namespace when a test needs it, and only then."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.project import PYTEST, Project

pytestmark = [pytest.mark.needs_userns, pytest.mark.slow]

AGAIN = r"^pyztun: .*EPERM.*; runs again as root of a user namespace"
TALK = """
import socket
def test_talk(pod_pair):
    left, right = pod_pair
    for address in right.addresses:
        (listener,) = right.netns.listen((address, 80))
        with listener, left.netns.connect((address, 80), timeout=10) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
def test_home_has_a_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
"""
USES_NETNS = "def test_netns(netns): pass\n"
MEASURE = """
import os, sys
def test_who(netns, tmp_path):
    with open({path!r}, "w") as file:
        print(sys.orig_argv[1:], os.getcwd(), os.environ["KEPT"], os.getpid(), sys.warnoptions,
              sys._xoptions, "PYZTUN_TESTING_PID" in os.environ, os.stat(tmp_path).st_uid,
              file=file)
"""


def refusing_userns(prefix: list[str]) -> list[str]:
    """Behind PREFIX, in a user namespace that allows no further one, without capabilities in it."""
    script = 'echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all "$@"'
    return [*prefix, "unshare", "--user", "--map-root-user", "sh", "-ec", script, "sh"]


def test_tests_run_as_an_ordinary_user(project: Project, stranger: list[str]) -> None:
    project.write("test_talk.py", TALK)
    run = project.run(wrap=stranger)
    assert (run.status, run.outcome) == (0, "2 passed"), run.text
    assert len(run.told(AGAIN)) == 1
    for once in ("test session starts", "^platform", "^rootdir", "^plugins", "collected 2 items"):
        assert len(run.told(once)) == 1, run.text
    assert not run.told("no tests ran|Exit")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [("assert False", 1, "1 failed"), ("pytest.exit('enough', returncode=7)", 7, "Exit: enough")],
)
def test_exit_status_is_that_of_the_second_run(
    project: Project, stranger: list[str], body: str, status: int, word: str
) -> None:
    project.write("test_ends.py", f"import pytest\ndef test_ends(netns):\n    {body}\n")
    run = project.run(wrap=stranger)
    assert (run.status, bool(run.told(word))) == (status, True), run.text
    assert run.told(AGAIN)


def test_command_directory_and_environment_stay(project: Project, stranger: list[str]) -> None:
    seen = project.directory / "seen"
    project.write("test_who.py", MEASURE.format(path=str(seen)))
    options = ["-X", "dev", "-W", "error::ImportWarning"]
    run = project.run(
        "-k",
        "who or else",
        wrap=stranger,
        command=[sys.executable, *options, *PYTEST[1:]],
        KEPT="as it was",
    )
    assert run.status == 0, run.text
    words = seen.read_text()
    assert words.startswith(f"{[*options, '-m', 'pytest']}"[:-1]), words
    assert f"'-k', 'who or else'] {project.directory} as it was" in words
    assert "'error::ImportWarning'] {'dev': True} False 0\n" in words
    assert seen.stat().st_uid == project.directory.stat().st_uid
    # The directory for tmp_path has the name of the user outside, as without pyztun.
    named_root = (project.directory / "pytest-of-root").exists()
    assert named_root == (project.directory.stat().st_uid == 0)


def test_pytest_script_is_run_again_too(project: Project, stranger: list[str]) -> None:
    project.write("test_netns.py", USES_NETNS)
    script = str(Path(sys.executable).with_name("pytest"))
    run = project.run("-q", wrap=stranger, command=[script])
    assert (run.status, run.outcome) == (0, "1 passed"), run.text
    assert run.told(AGAIN)


def test_fixture_behind_others_counts(project: Project, stranger: list[str]) -> None:
    project.write(
        "conftest.py",
        "import pytest\n@pytest.fixture\ndef netns(netns): return netns\n"
        "@pytest.fixture(autouse=True)\ndef hidden(netns): return netns\n",
    )
    project.write("test_hidden.py", "def test_hidden(): pass\n")
    run = project.run(wrap=stranger)
    assert (run.outcome, len(run.told(AGAIN))) == ("1 passed", 1), run.text


def test_what_other_plugins_began_has_ended_before(project: Project, stranger: list[str]) -> None:
    """A session's beginnings and ends come in pairs, and a report is that of the second run."""
    project.write(
        "conftest.py",
        "import sys\n"
        "def say(*words): print(*words, file=sys.__stderr__)\n"
        "def pytest_configure(config): say('begin'); config.add_cleanup(lambda: say('end'))\n"
        "def pytest_unconfigure(): say('middle')\n",
    )
    project.write("test_netns.py", USES_NETNS)
    run = project.run("--junitxml=report.xml", wrap=stranger)
    assert run.told("^(begin|middle|end)$") == ["begin", "middle", "end"] * 2, run.text
    assert 'tests="1"' in (project.directory / "report.xml").read_text()


def test_new_tests_are_still_new_to_the_second_run(project: Project, stranger: list[str]) -> None:
    """--new-first puts them in front, by what the run before has noted."""
    new_first = ["-v", "--new-first", "-p", "cacheprovider"]
    project.write("test_a.py", USES_NETNS)
    assert project.run(*new_first, wrap=stranger).status == 0
    project.write("test_b.py", USES_NETNS)
    run = project.run(*new_first, wrap=stranger)
    assert [line.split("::")[0] for line in run.told("PASSED")] == ["test_b.py", "test_a.py"]


def test_terminal_shows_one_run(project: Project, stranger: list[str]) -> None:
    """On a terminal pytest counts while it collects, and overwrites its line."""
    project.write("test_netns.py", USES_NETNS)
    master, slave = pty.openpty()
    shell = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(project.directory)]
    command = [*stranger, *shell, *PYTEST, "-p", "no:cacheprovider", "--color=no"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        said = b""
        while chunk := _read_terminal(master):
            said += chunk
    os.close(master)
    assert process.returncode == 0
    text = said.decode()
    assert text.count("test session starts") == text.count("pyztun: ") == 1, text
    assert "1 passed" in text
    # A carriage return puts the line over what stood there.
    assert "\rpyztun: " in text.replace("\r\r", "\r"), text


def _read_terminal(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # EIO: the last user of the other end is gone
        return b""


# ---- not again -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("--collect-only",), ("--fixtures",), ("--setup-plan",), ("-k", "plain"), ("test_other.py",)],
    ids=" ".join,
)
def test_run_without_a_test_that_needs_it_stays(
    project: Project, stranger: list[str], arguments: tuple[str, ...]
) -> None:
    project.write("test_netns.py", USES_NETNS + "def test_plain(): pass\n")
    project.write("test_other.py", "def test_other(leak_check): pass\n")
    run = project.run(*arguments, wrap=stranger)
    assert (run.status, run.told("pyztun: ")) == (0, []), run.text


NOT_AGAIN = {
    "setting": (["-o", "pyztun_userns=false"], "", "pyztun_userns forbids"),
    "worker": ([], "def pytest_configure(config): config.workerinput = {}\n", "pytest-xdist"),
}


@pytest.mark.parametrize("kind", NOT_AGAIN)
def test_run_that_must_stay_skips_with_the_reason(
    project: Project, stranger: list[str], kind: str
) -> None:
    arguments, conftest, reason = NOT_AGAIN[kind]
    project.write("conftest.py", conftest)
    project.write("test_netns.py", USES_NETNS + "def test_plain(): pass\n")
    run = project.run("-rs", *arguments, wrap=stranger)
    assert (run.status, run.outcome) == (0, "1 passed, 1 skipped"), run.text
    told = rf"^SKIPPED \[1\] test_netns.py:1: needs a netns: .*EPERM.*{reason}.*unshare --user"
    assert run.told(told), run.text


def test_pytest_inside_another_program_stays(project: Project, stranger: list[str]) -> None:
    project.write("test_netns.py", USES_NETNS)
    project.write("program.py", "import pytest\nprint('result', pytest.main())\n")
    run = project.run("-rs", wrap=stranger, command=[sys.executable, "program.py"])
    assert run.told("^SKIPPED .*; pytest was called by another program"), run.text
    assert run.told("^result 0|^result ExitCode.OK"), run.text


def test_fixture_asked_for_while_running_skips(project: Project, stranger: list[str]) -> None:
    project.write("test_late.py", "def test_late(request): request.getfixturevalue('netns')\n")
    run = project.run("-rs", wrap=stranger)
    assert run.outcome == "1 skipped", run.text
    assert run.told("needs a netns: .*EPERM"), run.text


# ---- neither is possible ------------------------------------------------------------------------


def test_forbidden_user_namespaces_are_named(project: Project, stranger: list[str]) -> None:
    project.write("test_netns.py", USES_NETNS + "def test_pair(pod_pair): pass\n")
    run = project.run("-rs", wrap=refusing_userns(stranger))
    assert (run.status, run.outcome) == (0, "2 skipped"), run.text
    reason = "this system forbids user namespaces: user.max_user_namespaces=0"
    assert len(run.told(reason)) == 3, run.text
    assert len(run.told("pyztun: 2 tests skipped: needs a netns")) == 1, run.text


def test_required_root_fails_instead(project: Project, stranger: list[str]) -> None:
    project.write("test_netns.py", USES_NETNS)
    wrap = refusing_userns(stranger)
    run = project.run(wrap=wrap, PYZTUN_REQUIRE_ROOT="1")
    assert (run.status, run.outcome) == (1, "1 error"), run.text
    assert run.told(r"^needs a netns: .*max_user_namespaces=0 \(PYZTUN_REQUIRE_ROOT=1\)$")


@pytest.mark.needs_root
def test_missing_unshare_is_named(project: Project, stranger: list[str]) -> None:
    """In a mount namespace where a device lies over the command; a copy of it leads there."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    copy = str(shutil.copy(unshare, project.directory / "copy"))
    prefix = [copy if word == "unshare" else word for word in stranger]
    hide = ["unshare", "--mount", "sh", "-ec", 'mount --bind /dev/null "$0" && exec "$@"', unshare]
    project.write("test_netns.py", USES_NETNS)
    run = project.run("-rs", wrap=[*hide, *prefix])
    assert run.outcome == "1 skipped", run.text
    assert run.told(r"the command unshare \(util-linux\) is not installed"), run.text
