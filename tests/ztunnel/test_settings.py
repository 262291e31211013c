"""The command line of pyztun-ztunnel, and what a start that cannot succeed says."""

import dataclasses
import os
from typing import Any

import pytest

from pyztun import native
from pyztun.ztunnel import relay_env
from pyztun.ztunnel.settings import InPodSettings, SeedSettings, Settings, ZdsSettings, parse
from support import privilege
from support.programs import run_program

DEFAULT = ["127.0.0.1:15008", "127.0.0.1:15006", "127.0.0.1:15001"]

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("S", {"socket": "S", "mode": 0o600, "group": None, "uids": (), "allow_home": False}),
    ("S", {"max_peers": 1024}),
    ("S --mode 0660", {"mode": 0o660}),
    ("S --mode 0", {"mode": 0}),
    ("S --group 4242", {"group": 4242}),
    ("S --group root", {"group": 0}),
    ("S --allow-uid 1 --allow-uid 4294967294", {"uids": (1, 4294967294)}),
    ("--allow-home S", {"allow_home": True}),
    ("S --max-peers 1", {"max_peers": 1}),
    ("-- -S", {"socket": "-S"}),
]

ZDS: list[tuple[str, dict[str, str], str, InPodSettings]] = [
    ("--zds S", {}, "S", InPodSettings()),
    ("--zds S", {"INPOD_UDS": "T"}, "S", InPodSettings()),
    ("", {"INPOD_UDS": "T"}, "T", InPodSettings()),
    ("--zds S --bind loopback", {}, "S", InPodSettings(loopback=True)),
    ("--zds S --socks5 --backlog 7", {}, "S", InPodSettings(socks5=True, backlog=7)),
    ("--zds S", {"INPOD_PORT_REUSE": "false"}, "S", InPodSettings(reuse_port=False)),
    ("--zds S", {"IPV6_ENABLED": "False"}, "S", InPodSettings(ipv6=False)),
]

LISTEN = [
    ([], DEFAULT, 4096),
    (["127.0.0.1:15006"], ["127.0.0.1:15006"], 4096),
    (["0.0.0.0:1", "[::]:65535", "[::1]:2"], ["0.0.0.0:1", "[::]:65535", "[::1]:2"], 4096),
    (["[fe80::1%7]:15006"], ["[fe80::1%7]:15006"], 1),
]

REFUSED = [
    ("", "SOCKET or --zds SOCKET is missing"),
    ("S --zds T", "exclude each other"),
    ("--zds", "expected one argument"),
    ("--zds S --listen 127.0.0.1:1", "--listen goes with SOCKET"),
    ("--zds S --mode 0600", "--mode goes with SOCKET"),
    ("--zds S --group 0", "--group goes with SOCKET"),
    ("--zds S --allow-home", "--allow-home goes with SOCKET"),
    ("--zds S --max-peers 1024", "--max-peers goes with SOCKET"),
    ("S --bind loopback", "--bind goes with --zds"),
    ("S --socks5", "--socks5 goes with --zds"),
    ("--zds S --bind ::1", "invalid choice"),
    ("S T", "unrecognized arguments"),
    ("S --nonsense", "unrecognized arguments"),
    ("S --allow-h", "unrecognized arguments"),
    ("S --mode 0800", "octal"),
    ("S --mode 01000", "octal"),
    ("S --mode -1", "--mode"),
    ("S --mode x", "octal"),
    ("S --group no-such-group", "no group 'no-such-group'"),
    ("S --allow-uid -1", "--allow-uid"),
    ("S --allow-uid 4294967295", "not a number in"),
    ("S --allow-uid root", "not a number in"),
    ("S --max-peers 0", "not a number in"),
    ("S --max-workloads 0", "not a number in"),
    ("S --backlog 0", "not a number in"),
    ("S --backlog 2147483648", "not a number in"),
    ("S --backlog " + "9" * 5000, "--backlog"),
    ("S --log-format xml", "invalid choice"),
    ("S --listen 15006", "not ADDR:PORT"),
    ("S --listen :15006", "not"),
    ("S --listen localhost:15006", "not an IP address"),
    ("S --listen 127.0.0.1:", "not ADDR:PORT"),
    ("S --listen 127.0.0.1:x", "not ADDR:PORT"),
    ("S --listen 127.0.0.1:-1", "not ADDR:PORT"),
    ("S --listen 127.0.0.1:0", "port 0"),
    ("S --listen 127.0.0.1:65536", "65535"),
    ("S --listen 127.0.0.1:" + "9" * 5000, "--listen"),
    ("S --listen ::1:15006", "not ADDR:PORT"),
    ("S --listen [127.0.0.1:15006", "--listen"),
    ("S --listen [::1]15006", "not ADDR:PORT"),
    ("S --listen [fe80::1%lo]:15006", "not an IP address"),
    ("S --listen [fe80::1%4294967296]:15006", "--listen"),
    ("S --listen [fe80::1%" + "9" * 5000 + "]:15006", "--listen"),
    ("S --group 4294967296", "--group"),
    ("S --group " + "9" * 5000, "--group"),
]


@pytest.mark.parametrize(("line", "expected"), ACCEPTED)
def test_accepted(line: str, expected: dict[str, Any]) -> None:
    form = seed(line.split())
    assert {name: getattr(form, name) for name in expected} == expected


def test_accepted_in_both_forms() -> None:
    for form in ("S", "--zds S"):
        settings = parse([*form.split(), "--max-workloads", "2", "--log-format", "json"], {})
        assert (settings.max_workloads, settings.log_format) == (2, "json")


@pytest.mark.parametrize(("line", "environ", "path", "inpod"), ZDS)
def test_zds(line: str, environ: dict[str, str], path: str, inpod: InPodSettings) -> None:
    form = parse(line.split(), environ).form
    assert isinstance(form, ZdsSettings)
    assert form == ZdsSettings(path, (0, os.geteuid()), inpod, form.relay)


RELAY: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    (
        "",
        {},
        {
            "connect_timeout": 10.0,
            "idle_timeout": 0.0,
            "half_close_timeout": 3600.0,
            "drain": 5.0,
            "access_log": "-",
        },
    ),
    ("--threads 3 --idle-timeout 1.5", {}, {"threads": 3, "idle_timeout": 1.5}),
    ("--half-close-timeout 0 --connect-timeout 2", {}, {"half_close_timeout": 0.0}),
    ("--access-log off", {}, {"access_log": ""}),
    ("--access-log /a/b", {}, {"access_log": "/a/b"}),
    ("", {"ZTUNNEL_WORKER_THREADS": "5"}, {"threads": 5}),
    ("", {"ZTUNNEL_WORKER_THREADS": "1%"}, {"threads": 2}),
    ("--threads 4", {"ZTUNNEL_WORKER_THREADS": "5"}, {"threads": 4}),
    ("", {"CONNECTION_TERMINATION_DEADLINE": "1m30s"}, {"drain": 90.0}),
    ("--drain 2", {"CONNECTION_TERMINATION_DEADLINE": "9s"}, {"drain": 2.0}),
    ("", {"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, {"drain": 25.0}),
    ("", {"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, {"drain": 9.0}),
    ("", {"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, {"drain": 1.0}),
]


@pytest.mark.parametrize(("line", "environ", "expected"), RELAY)
def test_relay(line: str, environ: dict[str, str], expected: dict[str, Any]) -> None:
    form = parse(["--zds", "S", *line.split()], environ).form
    assert isinstance(form, ZdsSettings)
    assert {name: getattr(form.relay, name) for name in expected} == expected


def test_there_are_as_many_threads_as_cores_and_two_at_least() -> None:
    form = parse(["--zds", "S"], {}).form
    assert isinstance(form, ZdsSettings)
    assert form.relay.threads == min(max(2, len(os.sched_getaffinity(0))), 64)


def test_threads_are_what_the_relay_takes() -> None:
    """Said twice, so that the options are read without loading the relay."""
    assert native.load_relay()[1].PZ_RELAY_MAX_THREADS == relay_env.MAX_THREADS


def test_agents_are_root_ourselves_and_who_is_named() -> None:
    form = parse(["--zds", "S", "--allow-uid", "7"], {}).form
    assert isinstance(form, ZdsSettings)
    assert form.agents == (0, os.geteuid(), 7)


@pytest.mark.parametrize(
    "environ",
    [
        {"INPOD_UDS": ""},
        {"INPOD_UDS": "S", "IPV6_ENABLED": "no"},
        {"INPOD_UDS": "S", "ZTUNNEL_WORKER_THREADS": "many"},
        {"INPOD_UDS": "S", "CONNECTION_TERMINATION_DEADLINE": "10x"},
    ],
)
def test_an_environment_that_makes_no_sense(environ: dict[str, str]) -> None:
    with pytest.raises(SystemExit):
        parse([], environ)


def seed(words: list[str]) -> SeedSettings:
    form = parse(words, {"INPOD_UDS": "the socket was named"}).form
    assert isinstance(form, SeedSettings)
    return form


@pytest.mark.parametrize(("asked", "expected", "backlog"), LISTEN)
def test_listeners(asked: list[str], expected: list[str], backlog: int) -> None:
    words = ["S", "--backlog", str(backlog)]
    for each in asked:
        words += ["--listen", each]
    listeners = seed(words).listeners
    assert [str(each) for each in listeners] == expected
    assert {each.backlog for each in listeners} == {backlog}


def test_the_default_backlog_is_4096() -> None:
    assert {each.backlog for each in seed(["S"]).listeners} == {4096}


@pytest.mark.parametrize(("line", "why"), REFUSED, ids=lambda text: text[:40])
def test_refused(line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(line.split(), {})
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert why in err.splitlines()[-1]


def test_sixty_four_listeners_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for port in range(1, 65) for word in ("--listen", f"127.0.0.1:{port}")]
    assert len(seed(["S", *words]).listeners) == 64
    with pytest.raises(SystemExit):
        parse(["S", *words, "--listen", "127.0.0.1:65"])
    assert "at most 64 listeners" in capsys.readouterr().err


def test_settings_do_not_change() -> None:
    settings = parse(["S"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.log_format = "json"  # type: ignore[misc]
    assert isinstance(settings, Settings)


def test_help_and_version() -> None:
    shown = run_program("pyztun-ztunnel", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for option in ("--listen", "--backlog", "--mode", "--group", "--allow-uid", "--allow-home"):
        assert option in shown.stdout
    version = run_program("pyztun-ztunnel", "--version")
    assert version.stdout.startswith("pyztun-ztunnel 0.")


def test_a_start_that_fails_is_one_line(sock_path: str) -> None:
    with open(sock_path, "x"):
        pass
    done = run_program("pyztun-ztunnel", sock_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pyztun-ztunnel: {sock_path} exists and is not a socket")
    assert done.stderr.count("\n") == 1


@pytest.mark.needs_netns
def test_a_start_without_the_capability_is_one_line(sock_path: str) -> None:
    wrap = [*privilege.readable(), "setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    done = run_program("pyztun-ztunnel", sock_path, wrap=wrap)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyztun-ztunnel: setns(home)")
    assert "CAP_SYS_ADMIN" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_start_with_too_small_an_fd_table_is_one_line(sock_path: str) -> None:
    done = run_program("pyztun-ztunnel", sock_path, wrap=["prlimit", "--nofile=256:256"])
    assert (done.returncode, done.stdout) == (1, "")
    assert "RLIMIT_NOFILE 256 is too low" in done.stderr
    assert done.stderr.count("\n") == 1
