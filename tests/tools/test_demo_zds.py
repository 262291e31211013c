"""`pyztun demo --zds`: what it shows beyond the seed form, and what is left when it is killed."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_run import STEPS, DemoRun, one, steps

from pyztun.tools import node_checks, node_stage
from support import needs, pods
from support.programs import run_program

pytestmark = pytest.mark.needs_named_netns

LISTENERS = r"\[::\]:15001, \[::\]:15006, \[::\]:15008"
PENDING = "pending: no ztunnel connected"


@pytest.fixture
def run(directory: Path) -> Iterator[DemoRun]:
    with DemoRun(directory, "--plain", "--zds") as demo:
        yield demo


def rows(lines: list[str]) -> list[list[str]]:
    """The rows of all tables of `list`: name, uid, cookie, ztunnels, first word of the state."""
    split = [re.split(r" {2,}", line.strip()) for line in lines if " default " in line]
    return [[each[0], each[2], each[4], each[6], each[8].partition(":")[0]] for each in split]


def test_evidence_of_the_issue(run: DemoRun) -> None:
    assert run.finish() == 0, "\n".join(run.out + run.err)
    _, pods_made, snapshot, added, inside, restarted, ztunnel, agent, deleted, end = steps(run.out)
    home, web, db, cache = one(r"four different netns: (.*)$", pods_made)[1].split(", ")
    assert len({home, web, db, cache}) == 4
    one(r"nobody is listed: no workload$", pods_made)

    first = one(r"ztunnel, pid (\d+), reports: READY=1$", snapshot)[1]
    one(r"the snapshot that ztunnel got: 0 workloads$", snapshot)
    one(rf"the agent has one ztunnel: pid {first} steady, knows 0$", snapshot)

    one(rf"^    ready web uid=pod-1 netns={web}$", added)
    one(r"ztunnel holds by an fd the netns of: web, db$", added)
    assert rows(added) == [
        ["web", "pod-1", web, "1", "ready"],
        ["db", "pod-2", db, "1", "ready"],
    ]
    for name in ("web", "db"):
        one(rf"lists in {name}: {LISTENERS}$", inside)
        one(rf"127\.0\.0\.1:15001 in {name}, accepted but not redirected: reset$", inside)
    one(r"nothing listens in cache: 0 LISTEN sockets$", inside)

    again = one(rf"^    cookie +{web} +(\d+)$", restarted)[1]
    milliseconds = int(one(r"a client in web is accepted: (\d+) ms after", restarted)[1])
    assert milliseconds < 5000
    one(r"the kernel reports the end of the old netns of web: netlink", restarted)
    one(rf"lists in web: {LISTENERS}$", restarted)
    assert rows(restarted)[0] == ["web", "pod-1", again, "1", "ready"]

    one(rf"\$ kill -KILL {first}$", ztunnel)
    one(r"nothing listens in db: 0 LISTEN sockets$", ztunnel)
    one(r"a client in web and db is accepted: \d+ ms after its start$", ztunnel)
    assert rows(ztunnel) == [
        ["web", "pod-1", again, "-", "pending"],
        ["db", "pod-2", db, "-", "pending"],
        ["web", "pod-1", again, "2", "ready"],
        ["db", "pod-2", db, "2", "ready"],
    ]

    asked = one(r"clients in web and db are accepted meanwhile: (\d+) of (\d+)$", agent)
    assert int(asked[1]) == int(asked[2]) >= 2
    one(r"it found each netns again by its cookie: 2 of 2 are the same$", agent)
    one(r"with the same sockets as before: 6 of 6 sockets$", agent)
    assert [row[:3] for row in rows(agent)] == [
        ["web", "pod-1", again],
        ["db", "pod-2", db],
        ["web", "pod-1", again],
        ["db", "pod-2", db],
        ["cache", "pod-3", cache],
    ]

    one(r"^    deleted web uid=pod-1$", deleted)
    one(r"nothing listens in web: 0 LISTEN sockets$", deleted)
    assert [row[0] for row in rows(deleted)] == ["db", "cache"]
    for name in ("web", "db", "cache"):
        one(rf"the kernel reports the end of {name}: netlink message RTM_DELNSID", end)
    assert {row[4] for row in rows(end)} == {"degraded"}


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 4), (signal.SIGINT, 5), (signal.SIGHUP, 7)],
)
def test_interrupted_at_work_it_cleans_up(run: DemoRun, number: int, step: int) -> None:
    run.process.stdout.wait_for(f"[{step}/{STEPS}]")
    run.process.process.send_signal(number)
    assert run.finish() == 1
    assert run.err == ["pyztun demo: interrupted; everything is cleaned up"]
    assert not any(line.startswith(f"[{STEPS}/{STEPS}]") for line in run.out)
    assert run.left_behind() == []


def test_killed_demo_takes_its_programs_along_and_the_next_one_tidies_up(directory: Path) -> None:
    with DemoRun(directory, "--plain", "--zds") as killed:
        killed.process.stdout.wait_for(f"[4/{STEPS}]")
        killed.process.process.kill()
        killed.finish()
        deadline = time.monotonic() + 10
        while killed.processes() and time.monotonic() < deadline:
            os.sched_yield()
        assert killed.processes() == []
        names = killed.names()
        assert sorted(names) == sorted(
            f"demo-{pod}-{killed.process.pid}" for pod in ("web", "db", "cache")
        )
        assert list(directory.iterdir()) != []
        with DemoRun(directory, "--plain", "--zds") as after:
            assert after.finish() == 0, "\n".join(after.out + after.err)
        assert killed.left_behind() == []


def test_two_at_a_time_do_not_disturb_each_other(directory: Path) -> None:
    for name in ("one", "other"):
        (directory / name).mkdir()
    with (
        DemoRun(directory / "one", "--plain", "--zds") as run,
        DemoRun(directory / "other", "--plain", "--zds") as other,
    ):
        for each in (run, other):
            assert each.finish() == 0, "\n".join(each.out + each.err)
        assert run.left_behind() == other.left_behind() == []


@pytest.mark.needs_userns
def test_where_names_cannot_be_made_one_line_says_what_to_do(no_capability: list[str]) -> None:
    if needs.in_user_namespace():
        pytest.skip("the user namespace of the tests has a /run that it may write to")
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    done = run_program("pyztun", "demo", "--zds", wrap=[*no_capability, *unshare])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "a user namespace with a /run of its own: unshare " in done.stderr
    assert "/run/netns" in done.stderr


def test_names_of_the_living_are_not_taken_for_remains() -> None:
    pod = pods.Pod(f"demo-web-{os.getpid()}")
    try:
        node_stage.remove_names()
        assert pod.exists
    finally:
        pod.delete()


# ---- the tables ----------------------------------------------------------------------------------

LIST = """\
NAME  NAMESPACE  UID    NETNS       COOKIE  SINCE  ZTUNNELS  CAPTURE   STATE
web   default    pod-1  demo-web-7  4711    3s     -         redirect  pending: no ztunnel
                                                                       connected
db    default    pod-2  demo-db-7   4712    3s     1,2       none      ready
"""


def test_rows_of_a_list_whose_last_cells_are_wrapped() -> None:
    assert node_checks.rows_of(LIST) == [
        ("web", "pod-1", "4711", PENDING),
        ("db", "pod-2", "4712", "ready"),
    ]
    assert node_checks.rows_of("") == []


def test_row_that_is_ready_but_known_to_no_ztunnel_is_something_else() -> None:
    _, db = node_checks.rows_of(LIST.replace("1,2", "-  "))
    assert db.state == "ready, ztunnels -"
