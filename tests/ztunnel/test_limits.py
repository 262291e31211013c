"""How the fd table is shared out between peers, connections and workloads."""

import re
import resource
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyztun.errors import PyztunError
from pyztun.ztunnel.limits import (
    CLOSING_FDS,
    IN_FLIGHT_FDS,
    MAX_CONNECTIONS,
    MAX_FLOWS,
    OWN_FDS,
    PIPES,
    Needs,
    share_out,
)
from support import REPOSITORY
from support.zt_child import run_code

TABLE = [
    # fd limit, listeners, wanted peers and workloads -> peers, connections, workloads
    ((4096, 3, 1024, 100_000), (880, 440, 734)),
    ((20000, 3, 1024, 100_000), (1024, 512, 5963)),
    ((1 << 20, 3, 1024, 100_000), (1024, 512, 100_000)),
    ((1024, 3, 1024, 100_000), (112, 56, 94)),
    ((4096, 64, 1024, 100_000), (880, 440, 34)),
    ((20000, 3, 10, 5), (10, 512, 5)),
]


ZDS_TABLE = [
    # fd limit, threads, wanted workloads -> connections, workloads, pipes of a thread
    ((20000, 2, 100_000), (4791, 2428, 32)),
    ((1 << 20, 2, 100_000), (65536, 100_000, 32)),
    ((4096, 2, 100_000), (815, 440, 32)),
    ((1024, 64, 100_000), (80, 40, 0)),
]


def seed(listeners: int, peers: int) -> Needs:
    return Needs(
        a_workload=listeners, peers=peers, connections=MAX_CONNECTIONS, connections_share=8
    )


def relay(threads: int) -> Needs:
    return Needs(
        a_workload=4,
        peers=1,
        connections=MAX_FLOWS,
        connections_share=2,
        a_connection=2,
        pipes=PIPES,
        threads=threads,
    )


@pytest.mark.parametrize(("asked", "expected"), TABLE)
def test_shares(asked: tuple[int, int, int, int], expected: tuple[int, int, int]) -> None:
    limit, listeners, peers, workloads = asked
    budget = share_out(limit, seed(listeners, peers), workloads)
    assert (budget.max_peers, budget.max_connections, budget.max_workloads) == expected
    assert budget.max_pipes == 0


@pytest.mark.parametrize(("asked", "expected"), ZDS_TABLE)
def test_shares_of_a_relay(asked: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    limit, threads, workloads = asked
    budget = share_out(limit, relay(threads), workloads)
    assert (budget.max_connections, budget.max_workloads, budget.max_pipes) == expected


@pytest.mark.parametrize(("limit", "listeners"), [(0, 3), (256, 3), (317, 3), (330, 64), (-1, 1)])
def test_a_table_too_small_for_one_workload(limit: int, listeners: int) -> None:
    with pytest.raises(PyztunError, match=f"RLIMIT_NOFILE {limit} is too low"):
        share_out(limit, seed(listeners, 1024), 100_000)


@given(st.integers(0, 2**22), st.integers(1, 64), st.integers(1, 65536), st.integers(1, 100_000))
def test_all_shares_together_fit(limit: int, listeners: int, peers: int, workloads: int) -> None:
    """With every share used up, one hostile message still finds room for its descriptors."""
    try:
        budget = share_out(limit, seed(listeners, peers), workloads)
    except PyztunError:
        return
    assert 1 <= budget.max_peers <= peers
    assert 1 <= budget.max_workloads <= workloads
    assert 1 <= budget.max_connections <= MAX_CONNECTIONS
    used = budget.max_peers + budget.max_connections + budget.max_workloads * listeners
    assert used + OWN_FDS + IN_FLIGHT_FDS + CLOSING_FDS <= limit


@given(st.integers(0, 2**22), st.integers(1, 64), st.integers(1, 100_000))
def test_all_shares_of_a_relay_together_fit(limit: int, threads: int, workloads: int) -> None:
    try:
        budget = share_out(limit, relay(threads), workloads)
    except PyztunError:
        return
    used = 1 + 2 * budget.max_connections + 2 * threads * (budget.max_pipes + 1)
    used += 4 * budget.max_workloads
    assert used + OWN_FDS + IN_FLIGHT_FDS + CLOSING_FDS <= limit


def test_the_share_of_the_closer_is_what_the_closer_may_hold() -> None:
    (room,) = re.findall(r"PZ_CLOSER_ROOM = (\d+)", (REPOSITORY / "csrc/closer.h").read_text())
    assert int(room) == CLOSING_FDS


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource\nfrom pyztun.service.fdlimit import raise_fd_limit\n"
        "print(raise_fd_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = run_code(code, wrap=["prlimit", "--nofile=256:999"])
    assert (done.stdout, done.stderr) == ("999 999 999\n", "")


def test_an_unlimited_table_is_limited_by_the_kernel() -> None:
    """fs.nr_open caps what RLIM_INFINITY would be; setting more than that fails with EPERM."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    probe = ["prlimit", "--nofile=256:unlimited", "true"]
    if hard != resource.RLIM_INFINITY and subprocess.run(probe, check=False).returncode:
        pytest.skip("the hard limit cannot be raised here")
    code = "from pyztun.service.fdlimit import raise_fd_limit\nprint(raise_fd_limit())"
    done = run_code(code, wrap=probe[:-1])
    with open("/proc/sys/fs/nr_open") as limit:
        assert (done.stdout, done.stderr) == (limit.read(), "")
