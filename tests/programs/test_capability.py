"""CAP_SYS_ADMIN is all that the receiver needs, the sender needs nothing; who lacks it is told."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import REPOSITORY, needs, pods, privilege
from support.pods import Canary, Pod
from support.programs import Daemon, cni, environment

LISTENERS = {"127.0.0.1:15008", "127.0.0.1:15006", "127.0.0.1:15001"}
CAP_SYS_ADMIN = 1 << 21

Start = Callable[..., Daemon]
MakeCanary = Callable[[Pod], Canary]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def check_handoff(pod: Pod, canary: Canary, sock: str, sender: list[str]) -> None:
    """The walk-through from the handoff to the pod's end, the sender behind a command prefix."""
    done = cni(sock, pod.path, wrap=sender)
    assert (done.returncode, done.stdout) == (0, "listeners ready\n"), done.stderr
    shown = pod.exec("ss", "-ntlH")
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert {row[3] for row in rows} == LISTENERS
    assert {row[2] for row in rows} == {"4096"}
    for port in (15008, 15006, 15001):
        assert pod.ask(port) == b"ok\n"
    assert pod.refuses(15002)
    pod.delete()
    assert canary.alive
    released = cni(sock, "--release", f"cookie:{pod.cookie}", wrap=sender)
    assert released.returncode == 0, released.stderr
    assert canary.died()


def test_uid_4242_with_only_cap_sys_admin(
    pod: Pod,
    make_canary: MakeCanary,
    start: Start,
    only_sys_admin: list[str],
    no_capability: list[str],
    shared_directory: Path,
) -> None:
    sock = str(shared_directory / "zt.sock")
    canary = make_canary(pod)
    ztunnel = start(sock, wrap=only_sys_admin)
    status = status_of(ztunnel.pid)
    assert status["Uid"].split() == [str(needs.STRANGER)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == CAP_SYS_ADMIN
    check_handoff(pod, canary, sock, sender=no_capability)
    assert ztunnel.stop() == 0
    assert ztunnel.complaints() == []
    assert not os.path.lexists(sock)


@pytest.mark.needs_root
def test_uid_0_with_only_cap_sys_admin(
    pod: Pod, make_canary: MakeCanary, start: Start, sock_path: str
) -> None:
    wrap = [*privilege.readable(), "setpriv", "--bounding-set=-all,+sys_admin"]
    ztunnel = start(sock_path, wrap=wrap)
    assert int(status_of(ztunnel.pid)["CapEff"], 16) == CAP_SYS_ADMIN
    check_handoff(pod, make_canary(pod), sock_path, sender=[])
    assert ztunnel.stop() == 0


def check_refuses_to_start(ztunnel: Daemon, sock: str) -> None:
    """One line that names the capability, exit 1, no READY=1, no socket left."""
    assert ztunnel.wait() == 1
    (line,) = ztunnel.stderr.all()
    assert line.startswith("pyztun-ztunnel: ")
    assert "CAP_SYS_ADMIN" in line
    assert ztunnel.stdout.all() == []
    assert ztunnel.notifications == []
    assert not os.path.lexists(sock)


def test_without_the_capability_it_says_so_and_does_not_start(
    start: Start, no_capability: list[str], shared_directory: Path
) -> None:
    if needs.root() is not None and int(status_of(os.getpid())["CapEff"], 16) & CAP_SYS_ADMIN:
        pytest.skip("has the capability, and cannot become another user")
    sock = str(shared_directory / "zt.sock")
    check_refuses_to_start(start(sock, wrap=no_capability, ready=False), sock)


@pytest.mark.needs_netns
def test_an_empty_bounding_set_is_as_good_as_no_capability(start: Start, sock_path: str) -> None:
    wrap = [*privilege.readable(), "setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    check_refuses_to_start(start(sock_path, wrap=wrap, ready=False), sock_path)


@pytest.mark.needs_root
def test_a_capability_over_another_user_namespace_is_none(
    pod: Pod,
    start: Start,
    shared_directory: Path,
    own_userns: list[str],
    no_capability: list[str],
) -> None:
    """Root of its own user namespace has every capability, and none over a pod of the host."""
    sock = str(shared_directory / "zt.sock")
    ztunnel = start(sock, wrap=own_userns)
    refused = cni(sock, pod.path, wrap=no_capability)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert "setns" in refused.stderr
    assert "CAP_SYS_ADMIN" in refused.stderr
    assert pod.listening() == set()
    assert "Traceback" not in "".join(ztunnel.stderr.all())
    assert ztunnel.stop() == 0


def effective(argv: list[str]) -> int:
    """CapEff of a program that shows /proc/self/status."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


@pytest.mark.needs_root
@pytest.mark.skipif(shutil.which("setcap") is None, reason="no setcap (libcap2-bin)")
def test_setcap_on_the_script_has_no_effect(start: Start, shared_directory: Path) -> None:
    """The kernel takes file capabilities from the interpreter, never from a #! script."""
    stranger = [*privilege.readable(), "setpriv", f"--reuid={needs.STRANGER}", "--clear-groups"]
    # First that setcap works here at all, on a program that is no script.
    shower = shared_directory / "cat"
    shutil.copy(shutil.which("cat") or "/bin/cat", shower)
    subprocess.run(["setcap", "cap_sys_admin+ep", str(shower)], check=True)
    assert effective([*stranger, "cat", "/proc/self/status"]) == 0
    assert effective([*stranger, str(shower), "/proc/self/status"]) == CAP_SYS_ADMIN

    script = shared_directory / "pyztun-ztunnel"
    start_main = "from pyztun.ztunnel.main import main"
    script.write_text(f"#!{sys.executable}\nimport sys\n\n{start_main}\n\nsys.exit(main())\n")
    script.chmod(0o755)
    subprocess.run(["setcap", "cap_sys_admin+ep", str(script)], check=True)
    sock = str(shared_directory / "zt.sock")
    check_refuses_to_start(start(sock, command=[str(script)], wrap=stranger, ready=False), sock)


def test_the_whole_walkthrough_in_an_unprivileged_user_namespace(own_userns: list[str]) -> None:
    """The walk-through's own tests, run by root of a user namespace that a plain user made."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs"]
    for name in ("test_walkthrough.py", "test_document.py"):
        argv.append(str(REPOSITORY / "tests/programs" / name))
    inner = subprocess.run(
        [*own_userns, *argv],
        env=environment({"PYZTUN_USERNS": "1", "PYZTUN_REQUIRE_ROOT": "0"}),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert inner.returncode == 0, inner.stdout + inner.stderr
    assert " passed" in inner.stdout
    skipped = [line for line in inner.stdout.splitlines() if line.startswith("SKIPPED")]
    known = ("needs_root", "no systemd-analyze")
    assert all(any(why in line for why in known) for line in skipped), skipped
    assert "127.0.0.1:15008" not in pods.listening()
