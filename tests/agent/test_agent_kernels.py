"""The agent before Linux 6.18, where a netns tells its cookie through a socket in it alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pyztun import NetNs
from pyztun.testing import AckingZtunnel
from support import zt_oldkernel
from support.agent import Agent
from support.pods import Pod
from support.programs import Daemon

pytestmark = [
    pytest.mark.needs_named_netns,
    pytest.mark.skipif(
        not zt_oldkernel.available(), reason="the numbers of the calls are not known here"
    ),
]

WITHOUT_SYS_ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"]


@pytest.fixture
def old(directory: Path, start: Callable[..., Daemon]) -> Agent:
    """Not begun yet."""
    return Agent(directory, start)


def test_cookie_is_asked_of_a_socket(old: Agent, pod: Pod) -> None:
    old.begin(wrap=zt_oldkernel.prefix("id"))
    with AckingZtunnel(old.zds) as ztunnel, NetNs.from_name(pod.name) as netns:
        old.wait_for_ztunnels(1)
        assert old.must_add(pod, uid="u")["cookie"] == netns.cookie
        assert ztunnel.workloads == {"u": netns.cookie}
        assert old.daemon.netns_inode() != netns.inode


def test_without_capability_the_inode_has_to_do(old: Agent, make_pod: Callable[[], Pod]) -> None:
    old.begin(wrap=[*WITHOUT_SYS_ADMIN, *zt_oldkernel.prefix("id")])
    one, two = make_pod(), make_pod()
    with AckingZtunnel(old.zds) as ztunnel:
        old.wait_for_ztunnels(1)
        added = [old.must_add(pod, uid=pod.name) for pod in (one, two)]
        assert [each["cookie"] for each in added] == [None, None]
        assert old.add(one, uid="other").error == "netns-taken"
        name = one.name
        one.delete()
        ztunnel.wait_for(lambda workloads: set(workloads) == {two.name})
        with NetNs.create(name) as again:
            try:
                old.wait_for(name, "ready", inode=again.inode)
                assert ztunnel.workloads[name] == again.cookie
            finally:
                again.remove()
