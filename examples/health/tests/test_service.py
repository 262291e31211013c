"""The service and the probe in one fresh network namespace, where every port is free."""

import socket

from pyztun import NetNs
from pyztun.testing import LeakCheck

from podhealth import Health, HealthService, probe

PORT = 80
HERE = ("127.0.0.1", PORT)


def test_healthy(netns: NetNs) -> None:
    (listener,) = netns.listen(HERE)
    with HealthService(listener, lambda: None):
        assert probe(*HERE, connect=netns.connect) == Health(True, "ok")


def test_failing(netns: NetNs) -> None:
    (listener,) = netns.listen(HERE)
    with HealthService(listener, lambda: "no database"):
        assert probe(*HERE, connect=netns.connect) == Health(False, "failing: no database")


def test_each_connection_is_checked_anew(netns: NetNs) -> None:
    reasons = iter([None, "disk full", None])
    (listener,) = netns.listen(HERE)
    with HealthService(listener, lambda: next(reasons)):
        found = [probe(*HERE, connect=netns.connect).ok for _ in range(3)]
    assert found == [True, False, True]


def test_nobody_listens(netns: NetNs) -> None:
    health = probe(*HERE, connect=netns.connect)
    assert not health.ok
    assert "ECONNREFUSED" in health.text


def test_nobody_accepts(netns: NetNs) -> None:
    (listener,) = netns.listen(HERE)
    with listener:
        assert probe(*HERE, timeout=0.1, connect=netns.connect) == Health(False, "timed out")


def test_client_that_leaves_without_reading(netns: NetNs) -> None:
    (listener,) = netns.listen(HERE)
    with HealthService(listener, lambda: None):
        netns.connect(HERE).close()
        assert probe(*HERE, connect=netns.connect).ok


def test_restarts_leave_nothing_behind(netns: NetNs) -> None:
    with LeakCheck():
        for _ in range(3):
            (listener,) = netns.listen(HERE)
            HealthService(listener, lambda: None).close()


def test_service_needs_no_netns() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    with HealthService(listener, lambda: None):
        assert probe(host, port).ok
