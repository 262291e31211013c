"""add, del, list and status against an agent that answers what a test tells it, byte by byte."""

import json
import os
import pty
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support import programs
from support.programs import cni
from support.zt_answers import Receiver, Script, say_and_close, say_nothing

HERE = "/proc/self/ns/net"
Json = dict[str, Any]
PROMPT = 20.0
WORKLOAD: Json = {
    "uid": "u",
    "name": "web",
    "namespace": "default",
    "service_account": "default",
    "netns": "/run/netns/web",
    "cookie": 2**64 - 1,
    "inode": 7,
    "boot_id": "b",
    "state": "ready",
    "reason": "",
    "since": "2026-01-31T09:30:00Z",
    "capture": "none",
    "rules": None,
    "labels": {},
    "ztunnels": [1, 3],
}
STATUS: Json = {
    "version": "0.1.0",
    "pid": 4711,
    "started": "2026-01-31T09:30:00Z",
    "boot_id": "b",
    "zds": "/run/zds.sock",
    "control": "/run/agent.sock",
    "state_dir": "/run/pyztun",
    "workloads": {"ready": 2, "pending": 1, "degraded": 0},
    "ztunnels": [
        {
            "number": 3,
            "pid": 4800,
            "uid": 0,
            "since": "2026-01-31T09:30:00Z",
            "phase": "steady",
            "newest": True,
            "acknowledged": 2,
            "awaiting": "Add",
            "refused": {"u": "address in use"},
        }
    ],
    "reconcile": {
        "interval": 30.0,
        "passes": 2,
        "last_at": "2026-01-31T09:30:00Z",
        "last_cpu": 1.5,
    },
    "descriptors": {"held": 3, "limit": 1000},
    "podside": {"pid": 4712, "restarts": 1, "captured": 2, "repaired": 0},
}


def http(body: Json | bytes, status: int = 200) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Whatever\r\ncontent-LENGTH:  {len(raw)}\r\nX: y\r\n\r\n"
    return head.encode() + raw


def refusal(code: str, reason: str, status: int = 503, **more: object) -> bytes:
    return http({"error": code, "reason": reason, **more}, status)


def asked(receiver: Receiver) -> tuple[str, Json]:
    """The request line of the only request, and its body."""
    (raw,) = receiver.requests
    head, _, body = raw.partition(b"\r\n\r\n")
    return head.split(b" HTTP/1.1\r\n")[0].decode(), json.loads(body or b"null")


# ---- what is asked -------------------------------------------------------------------------------


def test_add_sends_the_reference_and_its_own_descriptor(sock_path: str) -> None:
    words = ["--uid", "u", "--name=n", "--namespace", "ns", "--service-account", "sa"]
    words += ["--label", "k=v", "--label", "l=", "--capture", "none", "--timeout", "3"]
    with Receiver(sock_path, http(WORKLOAD)) as receiver:
        done = cni("add", HERE, *words, "--control", sock_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ready web uid=u netns=18446744073709551615\n"
    line, body = asked(receiver)
    assert line == "POST /v1/workloads"
    _, proc, pid, fd, number = body.pop("descriptor").split("/")
    assert (proc, fd, pid.isdigit(), number.isdigit()) == ("proc", "fd", True, True)
    assert body == {
        "netns": HERE,
        "uid": "u",
        "name": "n",
        "namespace": "ns",
        "service_account": "sa",
        "labels": {"k": "v", "l": ""},
        "capture": "none",
        "timeout": 3.0,
    }


def test_what_is_not_given_is_the_agents_to_choose(sock_path: str) -> None:
    with Receiver(sock_path, http(WORKLOAD)) as receiver:
        cni("add", f"pid:{os.getpid()}", "--control", sock_path)
    _, body = asked(receiver)
    assert set(body) == {"netns", "descriptor", "timeout", "labels"}
    assert body["netns"] == f"pid:{os.getpid()}"


def test_the_socket_may_be_in_the_environment(sock_path: str) -> None:
    with Receiver(sock_path, http({"workloads": []})):
        assert cni("list", env={"PYZTUN_CONTROL": sock_path}).returncode == 0


def test_a_relative_path_is_made_absolute(directory: Path, sock_path: str) -> None:
    (directory / "link").symlink_to(HERE)
    with Receiver(sock_path, http(WORKLOAD)) as receiver:
        done = subprocess.run(
            [*programs.program("pyztun-cni"), "add", "./link", "--control", sock_path],
            env=programs.environment(),
            cwd=directory,
            capture_output=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0
    assert asked(receiver)[1]["netns"] == f"{directory}/link"


def test_del_asks_for_the_word_as_it_is(sock_path: str) -> None:
    with Receiver(sock_path, http({"workload": WORKLOAD, "unconfirmed": []})) as receiver:
        done = cni("del", "/run/netns/a b", "--timeout", "2.5", "--control", sock_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "deleted web uid=u\n", "")
    assert asked(receiver)[0] == "DELETE /v1/workloads/%2Frun%2Fnetns%2Fa%20b?timeout=2.5"


def test_del_of_a_relative_path_is_a_uid_first(directory: Path, sock_path: str) -> None:
    def script(peer: socket.socket, first: bytes) -> None:
        found = b"..." not in first and b"%2Fa%2Fb" in first
        good = http({"workload": WORKLOAD, "unconfirmed": []})
        peer.sendall(good if found else refusal("no-such-workload", "none", 404))

    with Receiver(sock_path, script) as receiver:
        done = subprocess.run(
            [*programs.program("pyztun-cni"), "del", "a/b", "--control", sock_path],
            env=programs.environment(),
            cwd=directory,
            capture_output=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0
    lines = [raw.split(b"?")[0].decode() for raw in receiver.requests]
    whole = str(directory).replace("/", "%2F")
    assert lines == ["DELETE /v1/workloads/a%2Fb", f"DELETE /v1/workloads/{whole}%2Fa%2Fb"]


# ---- what is told --------------------------------------------------------------------------------


def test_add_as_json(sock_path: str) -> None:
    with Receiver(sock_path, http(WORKLOAD)):
        done = cni("add", HERE, "--json", "--control", sock_path)
    assert json.loads(done.stdout) == WORKLOAD


def test_add_tells_that_connections_were_reset(sock_path: str) -> None:
    with Receiver(sock_path, http({**WORKLOAD, "connections_reset": True})):
        done = cni("add", HERE, "--control", sock_path)
    assert done.stdout.splitlines()[1:] == ["connections from before were reset"]
    closed = ", new ones are refused until it is ready (`pyztun-cni del` ends that)"
    for capture, rest in (("redirect", closed), ("none", "")):
        kept = {**WORKLOAD, "connections_reset": True, "capture": capture}
        with Receiver(sock_path, refusal("no-ztunnel", "no ztunnel; kept", workload=kept)):
            done = cni("add", HERE, "--control", sock_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.endswith(f"kept (uid u); connections from before were reset{rest}\n")


def test_add_tells_what_is_wrong_all_the_same(sock_path: str) -> None:
    broken = {**WORKLOAD, "state": "degraded", "reason": "rules: lo is down"}
    with Receiver(sock_path, http(broken)):
        done = cni("add", HERE, "--control", sock_path)
    assert done.stdout.endswith("netns=18446744073709551615\n")
    assert done.returncode == 1
    assert done.stderr == f"pyztun-cni: {HERE}: degraded: rules: lo is down\n"


def test_a_refused_add_is_one_line_with_the_uid(sock_path: str) -> None:
    answer = refusal("no-ztunnel", "no ztunnel; kept as pending", workload=WORKLOAD)
    with Receiver(sock_path, answer):
        done = cni("add", HERE, "--control", sock_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pyztun-cni: {HERE}: no ztunnel; kept as pending (uid u)\n"


def test_a_taken_netns_is_not_told_as_ones_own(sock_path: str) -> None:
    with Receiver(sock_path, refusal("netns-taken", f"{HERE}: is u", 409, workload=WORKLOAD)):
        done = cni("add", HERE, "--control", sock_path)
    assert (done.returncode, done.stderr) == (1, f"pyztun-cni: {HERE}: is u\n")


@pytest.mark.parametrize("netns", ["no-such", "/nonexistent", "/dev/null", "pid:0", "fd:999"])
def test_add_opens_the_netns_itself(sock_path: str, netns: str) -> None:
    with Receiver(sock_path, http(WORKLOAD)) as receiver:
        done = cni("add", netns, "--control", sock_path)
        assert receiver.requests == []
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert netns in done.stderr


def test_an_unconfirmed_del_is_exit_3(sock_path: str) -> None:
    with Receiver(sock_path, http({"workload": WORKLOAD, "unconfirmed": [3, 5]})):
        done = cni("del", "u", "--timeout", "2", "--control", sock_path)
    assert (done.returncode, done.stdout) == (3, "deleted web uid=u\n")
    assert done.stderr == "pyztun-cni: u: not confirmed by ztunnel 3 5\n"


def test_list_in_a_pipe(sock_path: str) -> None:
    pending = {
        **WORKLOAD,
        "uid": "v" * 60,
        "cookie": None,
        "state": "pending",
        "reason": "no ztunnel",
        "ztunnels": [],
    }
    with Receiver(sock_path, http({"workloads": [WORKLOAD, pending]})):
        done = cni("list", "--control", sock_path)
    title, first, second = done.stdout.splitlines()
    assert " ".join(title.split()) == "NAME NAMESPACE UID NETNS COOKIE SINCE ZTUNNELS CAPTURE STATE"
    words = first.split()
    assert words[:5] == ["web", "default", "u", "/run/netns/web", "18446744073709551615"]
    assert words[5].endswith("d")
    assert words[6:] == ["1,3", "none", "ready"]
    assert second.split()[2:5] == ["v" * 60, "/run/netns/web", "-"]
    assert second.endswith("-         none     pending: no ztunnel")
    assert "\x1b" not in done.stdout


def test_an_empty_list_says_so_on_stderr(sock_path: str) -> None:
    with Receiver(sock_path, http({"workloads": []})):
        done = cni("list", "--control", sock_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert "pyztun-cni add" in done.stderr
        assert cni("list", "--json", "--control", sock_path).stdout == "[]\n"


def test_list_as_json(sock_path: str) -> None:
    with Receiver(sock_path, http({"workloads": [WORKLOAD, WORKLOAD]})):
        done = cni("list", "--json", "--control", sock_path)
    assert json.loads(done.stdout) == [WORKLOAD, WORKLOAD]


def test_status_for_people_and_machines(sock_path: str) -> None:
    with Receiver(sock_path, http(STATUS)):
        plain = cni("status", "--control", sock_path)
        assert json.loads(cni("status", "--json", "--control", sock_path).stdout) == STATUS
    assert (plain.returncode, plain.stderr) == (0, "")
    for text in (
        "pid 4711",
        "/run/zds.sock",
        "3: 2 ready, 1 pending",
        "3 of 1000",
        "every 30 s",
        "pid 4712, restarted once; rules in 2 pods, repaired 0 times",
    ):
        assert text in plain.stdout
    assert plain.stdout.splitlines()[-1].split()[:3] == ["3", "4800", "0"]
    assert plain.stdout.splitlines()[-1].endswith("yes     2      Add        u: address in use")


def test_status_without_a_ztunnel(sock_path: str) -> None:
    with Receiver(sock_path, http({**STATUS, "ztunnels": []})):
        assert cni("status", "--control", sock_path).stdout.endswith("none is connected\n")


def on_a_terminal(*words: str, columns: int, env: dict[str, str] | None = None) -> str:
    """What the command prints on a terminal so wide."""
    master, slave = pty.openpty()
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        command = [*programs.program("pyztun-cni"), *words]
        environment = programs.environment({"TERM": "xterm", "PYTHONUTF8": "1", **(env or {})})
        environment.pop("NO_COLOR", None) if env is None else None
        with subprocess.Popen(command, stdout=slave, env=environment) as process:
            os.close(slave)
            slave = -1
            whole = b""
            while select.select([master], [], [], PROMPT)[0]:
                try:
                    chunk = os.read(master, 65536)
                except OSError:  # EIO: the other side is closed
                    break
                if not chunk:
                    break
                whole += chunk
            assert process.wait(PROMPT) == 0
        return whole.decode().replace("\r\n", "\n")
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_list_on_a_terminal_fits_and_has_short_names(sock_path: str) -> None:
    good = {**WORKLOAD, "cookie": 4133}
    bad = {**good, "state": "degraded", "reason": "netns gone " * 12, "uid": "x" * 90}
    with Receiver(sock_path, http({"workloads": [good, bad]})):
        told = on_a_terminal("list", "--control", sock_path, columns=90)
        plain = on_a_terminal("list", "--control", sock_path, columns=90, env={"NO_COLOR": "1"})
    assert "\x1b[32mready\x1b[0m" in told
    assert "\x1b[31mdegraded\x1b[0m: netns gone" in told
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 90
    assert "/run/netns" not in plain
    assert (plain.count("netns"), plain.count("gone")) == (12, 12)


def test_list_on_a_terminal_fits_the_longest_cookie(sock_path: str) -> None:
    pending = {**WORKLOAD, "state": "pending", "reason": "no ztunnel is connected"}
    with Receiver(sock_path, http({"workloads": [pending]})):
        told = on_a_terminal("list", "--control", sock_path, columns=90, env={"NO_COLOR": "1"})
    assert max(map(len, told.splitlines())) <= 90
    assert str(2**64 - 1) in told


def test_status_on_a_terminal_fits(sock_path: str) -> None:
    with Receiver(sock_path, http(STATUS)):
        told = on_a_terminal("status", "--control", sock_path, columns=80)
    assert max(map(len, told.splitlines())) <= 80


# ---- nobody, and nonsense ------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["add", HERE], ["del", "u"], ["list"], ["status"]])
def test_no_agent_is_one_line_that_says_which_socket(directory: Path, words: list[str]) -> None:
    path = str(directory / "none.sock")
    done = cni(*words, "--control", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert path in done.stderr
    assert "is `pyztun-cni agent` running?" in done.stderr


def test_a_socket_that_nobody_listens_on(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(sock_path)
    done = cni("list", "--control", sock_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "ECONNREFUSED: is `pyztun-cni agent` running?" in done.stderr


NONSENSE: list[Script | bytes] = [
    b"\n",
    b"ok\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
    b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10000,
    http(b"not json"),
    http(b"[]"),
    http(b"[" * 100000),
    http(b"\xff\xfe\x00"),
    http({"workloads": 3, "workload": 3, "ztunnels": 3}),
    http({"workloads": [3]}),
    http({}, 500),
    http({"error": 3, "reason": None, "workload": 7}, 400),
    http(b"", 204),
]


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda each: repr(each[:50]))
@pytest.mark.parametrize("words", [["del", "u"], ["list"], ["status"]])
def test_nonsense_is_one_line(sock_path: str, words: list[str], answer: bytes) -> None:
    with Receiver(sock_path, say_and_close(answer)):
        done = cni(*words, "--control", sock_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_that_ends_before_it_answers(sock_path: str) -> None:
    with Receiver(sock_path, say_and_close(b"HTTP/1.1 200 OK\r\nContent-Le")):
        done = cni("add", HERE, "--control", sock_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "closed the connection before it answered" in done.stderr
    assert "pyztun-cni list" in done.stderr


def test_an_agent_that_does_not_answer(sock_path: str) -> None:
    with Receiver(sock_path, say_nothing):
        began = time.monotonic()
        done = cni("status", "--timeout", "0.1", "--control", sock_path)
        assert 2 <= time.monotonic() - began < 2 + PROMPT
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does not answer in time" in done.stderr


def test_a_refusal_that_comes_before_the_request_was_read(sock_path: str) -> None:
    """The agent closes with our bytes unread, so that sending and reading may fail: it is told."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sock_path)
        listener.listen()
        command = [*programs.program("pyztun-cni"), "status", "--control", sock_path]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, env=programs.environment(), text=True
        ) as process:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(refusal("forbidden", "uid 7 may not ask", 403))
            _, err = process.communicate(timeout=PROMPT)
    assert (process.returncode, err) == (1, "pyztun-cni: uid 7 may not ask\n")


EVIL = "\x1b]0;title\x07\x1b[31mred \u202e \x08\x7f\r\n\u2028\x9b31m\udcff"
CONTROLS = [
    chr(number) for number in [*range(32), *range(127, 160), 0x202E, 0x2028] if number != 10
]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["add", HERE], http({**WORKLOAD, "name": EVIL, "uid": EVIL, "state": EVIL})),
        (["add", HERE, "--json"], http({**WORKLOAD, "name": EVIL})),
        (["add", HERE], refusal("refused", EVIL, workload={"uid": EVIL})),
        (["del", "u"], http({"workload": {"name": EVIL, "uid": EVIL}, "unconfirmed": [EVIL]})),
        (["del", EVIL.replace("\x00", "")], refusal("no-such-workload", EVIL)),
        (["list"], http({"workloads": [{**dict.fromkeys(WORKLOAD, EVIL), "ztunnels": [EVIL]}]})),
        (["list", "--json"], http({"workloads": [dict.fromkeys(WORKLOAD, EVIL)]})),
        (["status"], http({**STATUS, "zds": EVIL, "workloads": {EVIL: 1}})),
        (["status"], http({**STATUS, "ztunnels": [{**STATUS["ztunnels"][0], "phase": EVIL}]})),
        (
            ["status"],
            http({**STATUS, "ztunnels": [{**STATUS["ztunnels"][0], "refused": {EVIL: EVIL}}]}),
        ),
        (["status", "--json"], http({EVIL: EVIL})),
        (["add", HERE, f"--{EVIL}"], b""),
    ],
)
def test_control_characters_do_not_reach_the_terminal(
    sock_path: str, words: list[str], answer: bytes
) -> None:
    with Receiver(sock_path, say_and_close(answer)):
        done = cni(*words, "--control", sock_path, env={"PYTHONUTF8": "1"})
    told = done.stdout + done.stderr
    assert "title" in told
    assert [each for each in CONTROLS if each in told] == []
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize("words", [["list"], ["status"], ["add", HERE], ["list", "--json"]])
@pytest.mark.parametrize("where", ["> /dev/full", ">&-"])
def test_an_output_that_takes_nothing(sock_path: str, words: list[str], where: str) -> None:
    body = {**STATUS, **WORKLOAD, "ztunnels": STATUS["ztunnels"], "workloads": [WORKLOAD]}
    if words == ["status"]:
        body["workloads"] = STATUS["workloads"]
    command = [*programs.program("pyztun-cni"), *words, "--control", sock_path]
    with Receiver(sock_path, http(body)):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {where}', "sh", *command],
            env=programs.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == (1 if "full" in where else 0)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") <= 1


# ---- start ---------------------------------------------------------------------------------------

SLOW = {
    "argparse",
    "asyncio",
    "aiohttp",
    "dataclasses",
    "email",
    "http.client",
    "logging",
    "pathlib",
    "rich",
    "shutil",
    "socket",
    "subprocess",
    "typing",
    "urllib.parse",
}


def modules(*words: str) -> set[str]:
    """What the command imports beyond bare python."""
    command = programs.program("pyztun-cni")[-1]

    def traced(*argv: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *argv],
            env=programs.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        return {line.rsplit("|", 1)[1].strip() for line in lines}

    return traced(command, *words) - traced("-c", "pass")


def test_the_commands_start_quickly(sock_path: str) -> None:
    with Receiver(sock_path, http({**WORKLOAD, "workload": WORKLOAD, "unconfirmed": []})):
        for words in (["add", HERE], ["del", "u"]):
            found = modules(*words, "--control", sock_path)
            assert {"pyztun._core", "json"} <= found
            assert found & SLOW == set()
            assert not any(name.startswith("pyztun.cni.agent") for name in found)
    with Receiver(sock_path, http({**STATUS, "workloads": []})):
        assert modules("list", "--control", sock_path) & SLOW == set()
