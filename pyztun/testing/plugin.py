"""The pytest plugin: fixtures ``netns``, ``pod_pair``, ``leak_check``. See docs/testing.md.

pytest loads this module in every run of everybody who has pyztun installed. So it imports nothing
but pytest; a fixture, or a collected test that uses one, loads what it needs.
"""

from __future__ import annotations

import os
import sys
from fnmatch import fnmatchcase

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pyztun import NetNs
    from pyztun.testing.leaks import LeakCheck
    from pyztun.testing.pods import PodPair

GUARD = "PYZTUN_TESTING_PID"
REQUIRE = "PYZTUN_REQUIRE_ROOT"
NEEDS = "needs a netns"
NEED_NETNS = frozenset({"netns", "pod_pair"})

obstacle = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "pyztun_leak_check",
        "check each test for what it leaves behind (the fixture leak_check, for all tests)",
        type="bool",
        default=False,
    )
    parser.addini(
        "pyztun_netns_names",
        "patterns of the names in /run/netns that leak_check reports; {pid} is this process",
        type="args",
        default=[],
    )
    parser.addini(
        "pyztun_userns",
        "run pytest again in a user namespace where the tests need one",
        type="bool",
        default=True,
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getini("pyztun_leak_check"):
        from pyztun.testing import everywhere

        config.pluginmanager.register(everywhere, "pyztun-leak-check")
    if GUARD in os.environ:
        from pyztun.testing import again

        again.arrive(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Before anything is said about the tests, that will not run here if they cannot."""
    config = session.config
    if _runs_no_test(config) or not any(map(_needs_netns, session.items)):
        return
    try:
        from pyztun.testing import again, userns

        why = userns.why_no_netns()
    except ImportError:
        # Such as a native module that was not built: an error of the tests that need it.
        return
    if why is None:
        return
    hindrance = userns.why_no_userns()
    if hindrance is None:
        if (hindrance := again.why_not_again(config)) is None:
            again.leave(session, why)
        hindrance = f"{hindrance} (as root, or by `{userns.BY_HAND}`, it works)"
    config.stash[obstacle] = f"{why}; {hindrance}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(
    config: pytest.Config,
) -> Generator[None, int | pytest.ExitCode | None, int | pytest.ExitCode | None]:
    """Around the whole run: when all plugins have ended, pytest may become another process."""
    status = yield
    again = sys.modules.get("pyztun.testing.again")
    return status if again is None else again.go_if_left(config, status)


@pytest.fixture
def netns(request: pytest.FixtureRequest) -> Iterator[NetNs]:
    """A fresh pyztun.NetNs with loopback up, gone after the test.

    What the test leaves open in it keeps it alive, and is told: by leak_check, or else by a
    NetnsHeldWarning.
    """
    _require_netns(request.config)
    from pyztun import NetNs
    from pyztun.testing import pins

    has_failed = _failure_of(request)
    with NetNs.create() as made:
        yield made
        if not has_failed() and "leak_check" not in request.fixturenames:
            pins.warn_of_holders(made)


@pytest.fixture
def pod_pair(request: pytest.FixtureRequest) -> Iterator[PodPair]:
    """A pyztun.testing.PodPair: pods ``left`` and ``right``, joined by a veth; gone after the test.

    What the test leaves open in one of them is told as for netns.
    """
    _require_netns(request.config)
    from pyztun.testing import pins, pods

    has_failed = _failure_of(request)
    with pods.pod_pair() as pair:
        yield pair
        if not has_failed() and "leak_check" not in request.fixturenames:
            pins.warn_of_holders(*(pod.netns for pod in pair))


@pytest.fixture
def leak_check(request: pytest.FixtureRequest) -> Iterator[LeakCheck]:
    """Fails a test that leaves a descriptor, thread, child process or network namespace behind.

    Its value is the pyztun.testing.LeakCheck. A test that failed is not checked: its traceback
    keeps its variables alive.
    """
    from pyztun.testing.leaks import LeakCheck

    has_failed = _failure_of(request)
    check = LeakCheck(names=_meant_names(request.config))
    yield check
    if not has_failed() and (lines := check.leaks()):
        pytest.fail("left behind: " + "; ".join(lines), pytrace=False)


def _runs_no_test(config: pytest.Config) -> bool:
    """Whether pytest was only asked what there is."""
    questions = ("collectonly", "showfixtures", "show_fixtures_per_test", "setupplan")
    return any(config.getoption(name, False) for name in questions)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says that tests were skipped for want of a netns: a green run would hide it."""
    skipped = terminalreporter.stats.get("skipped", [])
    why = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    ours = [text for text in why if text.startswith(f"Skipped: {NEEDS}")]
    if ours:
        terminalreporter.line("")
        terminalreporter.line(f"pyztun: {len(ours)} tests skipped: {ours[0][len('Skipped: ') :]}")


def _needs_netns(item: pytest.Item) -> bool:
    """Whether a test uses our fixtures: by name, through others, and not others of that name."""
    wanted = NEED_NETNS.intersection(getattr(item, "fixturenames", ()))
    info = getattr(item, "_fixtureinfo", None)
    return any(_is_ours(name, getattr(info, "name2fixturedefs", {})) for name in wanted)


def _is_ours(name: str, known: dict[str, list[pytest.FixtureDef[object]]]) -> bool:
    """Whether the fixture that this name means here is ours, or an override that asks for ours."""
    for definition in reversed(known.get(name, ())):
        if definition.func.__module__ == __name__:
            return True
        if name not in definition.argnames:
            return False
    return False


def _require_netns(config: pytest.Config) -> None:
    """Skips the test, with the reason, if this process cannot make a netns; or fails it."""
    from pyztun.testing.userns import why_no_netns

    why = config.stash.get(obstacle, None) or why_no_netns()
    if why is None:
        return
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{NEEDS}: {why} ({REQUIRE}=1)", pytrace=False)
    pytest.skip(f"{NEEDS}: {why}")


def _failure_of(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """A function that tells, in the teardown of a fixture, whether its test has failed.

    testsfailed counts failures; an expected one only leaves its exception in sys.last_value.
    """
    session = request.session
    count, last = session.testsfailed, getattr(sys, "last_value", None)

    def has_failed() -> bool:
        raised = getattr(sys, "last_value", None)
        return session.testsfailed != count or (raised is not None and raised is not last)

    return has_failed


def _meant_names(config: pytest.Config) -> Callable[[str], bool] | None:
    """Which names in /run/netns count, if the project says so."""
    patterns = config.getini("pyztun_netns_names")
    if not patterns:
        return None
    expanded = [pattern.replace("{pid}", str(os.getpid())) for pattern in patterns]
    return lambda name: any(fnmatchcase(name, pattern) for pattern in expanded)
