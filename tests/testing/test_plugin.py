"""The plugin in a stranger's project: what a leak looks like, and that others do not notice it."""

import re

import pytest

from support.project import Project

OPEN = "import os\nKEPT = []\n"
LEAKY = {
    "fd": ("KEPT.append(open('/dev/null'))", r"fd \d+ -> /dev/null"),
    "thread": (
        "import threading; event = threading.Event(); "
        "threading.Thread(target=event.wait, daemon=True, name='lost').start(); KEPT.append(event)",
        r"thread 'lost' \(tid \d+\)",
    ),
    "child": (
        "import subprocess; KEPT.append(subprocess.Popen(['cat'], stdin=subprocess.PIPE))",
        r"child process \d+ \(cat\)",
    ),
    "netns": (
        "import pyztun; KEPT.append(pyztun.NetNs.create())",
        r"fd \d+ -> net:\[\d+\] \(a netns\)",
    ),
    "socket": (
        "import pyztun\n"
        "    with pyztun.NetNs.create() as pod: KEPT.extend(pod.listen(('127.0.0.1', 80)))",
        r"fd \d+ -> socket:\[\d+\] \(AF_INET SOCK_STREAM 127.0.0.1:80, in netns \d+\)",
    ),
    "lost": (
        "import ctypes, pyztun\n"
        "    pod = pyztun.NetNs.create()\n"
        "    assert ctypes.CDLL(None).setns(pod.fileno(), 0x40000000) == 0\n"
        "    pod.close()",
        r"thread 'MainThread' is in netns \d+, was in \d+",
    ),
}
PLAIN = """
import pytest
def test_passes(tmp_path, capsys): print("said")
def test_fails(): assert 1 == 2
@pytest.mark.skip(reason="because")
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert False
@pytest.fixture
def broken(): raise ValueError("broken")
def test_error(broken): pass
"""
OWN_FIXTURE = """
import os, pytest
@pytest.fixture
def netns(): return "a stranger's"
@pytest.fixture
def pod_pair(): return "too"
def test_own(netns, pod_pair):
    assert (netns, pod_pair) == ("a stranger's", "too")
    print("uid", os.geteuid())
"""


@pytest.mark.slow
@pytest.mark.needs_netns
@pytest.mark.parametrize(
    ("way", "kind"), [*(("by name", kind) for kind in LEAKY), ("by setting", "fd")]
)
def test_leaking_test_fails_with_a_line_that_names_it(
    project: Project, way: str, kind: str
) -> None:
    code, line = LEAKY[kind]
    arguments = "leak_check" if way == "by name" else ""
    project.write("test_leaky.py", f"{OPEN}def test_leaks({arguments}):\n    {code}\n")
    setting = [] if way == "by name" else ["-o", "pyztun_leak_check=true"]
    run = project.run(*setting)
    assert (run.status, run.outcome) == (1, "1 passed, 1 error"), run.text
    assert run.told(rf"^left behind: (fd .*; )?{line}"), run.text


@pytest.mark.needs_named_netns
def test_leaked_name_is_named_unless_the_project_means_others(project: Project) -> None:
    name = f"pzleak{project.directory.name}"
    project.write(
        "test_leaky.py",
        f"import pyztun\ndef test_leaks(leak_check):\n    pyztun.NetNs.create('{name}').close()\n"
        "def test_removes():\n    import subprocess\n"
        f"    subprocess.run(['ip', 'netns', 'delete', '{name}'], check=True)\n",
    )
    run = project.run()
    assert run.told(f"^left behind: .*/run/netns/{name}"), run.text
    project.write("pytest.ini", "[pytest]\npyztun_netns_names = mine-*\n")
    assert project.run().outcome == "2 passed"


def test_test_that_leaves_nothing_passes_the_check(project: Project) -> None:
    project.write("pytest.ini", "[pytest]\npyztun_leak_check = true\nfilterwarnings = error\n")
    project.write("test_tidy.py", "def test_tidy():\n    open('/dev/null').close()\n")
    run = project.run()
    assert (run.status, run.outcome) == (0, "1 passed"), run.text


def test_failed_test_is_not_told_about_twice(project: Project) -> None:
    project.write("pytest.ini", "[pytest]\npyztun_leak_check = true\n")
    project.write(
        "test_failing.py",
        "import pytest\n"
        "def test_fails():\n    file = open('/dev/null')\n    assert not file\n"
        "@pytest.mark.xfail\n"
        "def test_expected():\n    file = open('/dev/zero')\n    assert not file\n"
        "@pytest.fixture\n"
        "def broken():\n    file = open('/dev/full')\n    assert not file\n"
        "def test_never_begins(broken): pass\n",
    )
    run = project.run()
    assert run.outcome == "1 failed, 1 xfailed, 1 error", run.text
    assert not run.told("left behind")


def test_module_can_leave_the_check_out(project: Project) -> None:
    project.write("pytest.ini", "[pytest]\npyztun_leak_check = true\n")
    without = "import pytest\n@pytest.fixture\ndef leak_check(): pass\n"
    leaky = f"{OPEN}def test_leaks(): KEPT.append(open('/dev/null'))\n"
    project.write("test_without.py", without + leaky)
    assert project.run().outcome == "1 passed"
    project.write("test_with.py", leaky)
    assert project.run().outcome == "2 passed, 1 error"


@pytest.mark.needs_netns
@pytest.mark.parametrize("fixture", ["netns", "pod_pair"])
def test_what_still_holds_a_netns_is_a_warning(project: Project, fixture: str) -> None:
    pod = "netns" if fixture == "netns" else "pod_pair.right.netns"
    project.write(
        "test_held.py",
        f"{OPEN}def test_held({fixture}): KEPT.extend({pod}.listen(('127.0.0.1', 80)))\n",
    )
    run = project.run()
    assert (run.status, run.outcome) == (0, "1 passed, 1 warning"), run.text
    told = r"NetnsHeldWarning: netns (\d+) lives on after the test, held by fd \d+ -> socket"
    assert len(run.told(told)) == 1, run.text
    assert project.run("-W", "error::UserWarning").outcome == "1 passed, 1 error"


@pytest.mark.needs_netns
def test_netns_that_the_test_closed_itself_is_no_trouble(project: Project) -> None:
    project.write("test_closed.py", "def test_closed(netns): netns.close()\n")
    assert project.run("-W", "error").outcome == "1 passed"


def test_broken_installation_is_an_error_of_the_tests_that_need_it(project: Project) -> None:
    project.write("conftest.py", "import sys\nsys.modules['pyztun._core'] = None\n")
    project.write("test_both.py", "def test_plain(): pass\ndef test_netns(netns): pass\n")
    run = project.run()
    assert (run.status, run.outcome) == (1, "1 passed, 1 error"), run.text
    assert run.told("ModuleNotFoundError: .*pyztun._core"), run.text


# ---- those who do not use it ---------------------------------------------------------------------


def without_times(text: str) -> str:
    """The output without times and without the list of plugins, which names every plugin."""
    return re.sub(r"in [0-9.]+s|^plugins: .*\n", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("arguments", [(), ("-v",), ("-q", "-rA"), ("--setup-show",), ("--co",)])
def test_plain_project_sees_no_difference(project: Project, arguments: tuple[str, ...]) -> None:
    project.write("test_plain.py", PLAIN)
    run = project.run(*arguments)
    other = project.run(*arguments, "-p", "no:pyztun")
    assert run.status == other.status == (0 if "--co" in arguments else 1)
    assert without_times(run.text) == without_times(other.text)
    assert bool(run.told("^plugins: .*pyztun")) == ("-q" not in arguments)
    assert not other.told("pyztun-|^plugins: .*pyztun")


def test_plugin_loads_nothing_but_itself(project: Project) -> None:
    project.write("test_plain.py", "def test_plain(): pass\n")
    project.write(
        "conftest.py",
        "import sys\n"
        "def pytest_unconfigure():\n"
        "    heavy = ('pyztun', 'pyroute2', 'cffi', '_cffi_backend', 'psutil', 'asyncio', 'rich')\n"
        "    print(sorted(name for name in sys.modules if name.split('.')[0] in heavy))\n",
    )
    run = project.run()
    assert "['pyztun', 'pyztun.testing', 'pyztun.testing.plugin']" in run.lines, run.text


def test_strangers_fixtures_of_the_same_names_are_theirs(
    project: Project, stranger: list[str]
) -> None:
    """No netns is needed, so nothing is run again."""
    project.write("test_own.py", OWN_FIXTURE)
    run = project.run("-rP", wrap=stranger)
    assert (run.status, run.outcome) == (0, "1 passed"), run.text
    assert not run.told("pyztun:")
