"""Rows of the agent: dead, and dead with ztunnel."""

from support.failclosed_stage import REFUSED, RELAYED, WAYS, Stage, echoes, every


def test_dead_and_another(captured: Stage) -> None:
    """Traffic goes on; the next one takes over, touches no connection and writes nothing."""
    node = captured.node
    old = [captured.relayed(way) for way in WAYS]
    rules = captured.inside.run("nft list ruleset")
    node.kill_agent()
    assert captured.fates() == every(RELAYED)
    assert all(map(echoes, old))
    node.begin_agent()
    node.agent.wait_for_ztunnels(1)
    captured.wait_for("ready")
    assert captured.fates() == every(RELAYED)
    assert all(map(echoes, old))
    captured.add()
    assert all(map(echoes, old))
    assert without_counters(captured.inside.run("nft list ruleset")) == without_counters(rules)
    lines = node.agent.daemon.stderr.all()
    assert not [line for line in lines if "rules-repaired" in line or "rules-applied" in line]


def without_counters(text: str) -> list[str]:
    return [word for word in text.split() if not word.isdigit()]


def test_agent_and_ztunnel_dead(captured: Stage) -> None:
    """Refused, both directions, both families; either order of coming back heals it."""
    node = captured.node
    node.kill_agent()
    node.ztunnel.kill()
    assert captured.fates() == every(REFUSED)
    node.start_ztunnel(ready=False)  # alone it knows of no pod
    node.ztunnel.stderr.wait_for("cannot-connect")
    assert captured.fates() == every(REFUSED)
    node.begin_agent()
    captured.wait_for("ready")
    assert captured.fates() == every(RELAYED)
    node.ztunnel.wait_ready()
