"""Ztunnel's side of ZDS row by row: Istio's table, and where ours differs on purpose.

A Script tells a Ztunnel what comes; it is the least that a caller does, with netns whose start
fails as long as it is told so.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyztun.protocol import zds_ztunnel as z
from pyztun.protocol.zds_ztunnel import Ztunnel


class Script:
    """A ztunnel that starts what it can.

    :ivar broken: netns in which nothing starts.
    """

    def __init__(self) -> None:
        self.side = Ztunnel()
        self.broken: set[str] = set()

    def add(self, uid: str, netns: str) -> str:
        """What was to be done, and ``failed`` behind it where it could not be."""
        action = self.side.add(uid, netns)
        if action == z.CONFIRM:
            return action
        if action == z.TAKE:
            self.side.stopped(self.side.holders[netns])
        if action == z.REFUSE or netns in self.broken:
            self.side.failed(uid, netns)
            return action if action == z.REFUSE else f"{action} failed"
        self.side.served(uid, netns)
        return action

    def delete(self, uid: str) -> str:
        action = self.side.delete(uid)
        if action == z.STOP:
            self.side.stopped(uid)
        return action

    def snapshot_sent(self) -> str:
        action, gone = self.side.snapshot_sent()
        for uid in gone:
            self.side.stopped(uid)
        return f"{action} -{','.join(sorted(gone))}" if gone else action

    def do(self, word: str) -> str:
        """``+u@n`` adds, ``-u`` deletes, ``=u`` keeps, ``.`` is SnapshotSent; or an event."""
        if word == ".":
            return self.snapshot_sent()
        if word[0] == "+":
            return self.add(*word[1:].split("@"))
        if word[0] == "-":
            return self.delete(word[1:])
        if word[0] == "=":
            return self.side.keep(word[1:])
        if word.startswith(("breaks@", "heals@")):
            change: Callable[[str], None] = (
                self.broken.add if word.startswith("breaks") else self.broken.discard
            )
            change(word.partition("@")[2])
            return ""
        event = self.side.connected if word == "connect" else self.side.disconnected
        event()
        return ""

    def all(self, words: str) -> None:
        for word in words.split():
            self.do(word)

    def served(self) -> str:
        self.check()
        return " ".join(f"{uid}@{netns}" for uid, netns in sorted(self.side.served_in.items()))

    def pending(self) -> str:
        return " ".join(f"{uid}@{netns}" for uid, netns in sorted(self.side.pending.items()))

    def check(self) -> None:
        side = self.side
        assert side.holders == {netns: uid for uid, netns in side.served_in.items()}
        for uid, netns in side.pending.items():
            assert side.served_in.get(uid) != netns


# before ; event -> outcome ; served afterwards ; pending afterwards
BEFORE_SNAPSHOT_SENT = [
    ("Add of an unknown uid starts it", "", "+u@1", "start", "u@1", ""),
    ("Add again in the same netns", "+u@1", "+u@1", "confirm", "u@1", ""),
    ("Add in another netns replaces", "+u@1", "+u@2", "replace", "u@2", ""),
    ("Add that cannot start is pending", "breaks@1", "+u@1", "start failed", "", "u@1"),
    ("its last netns wins", "breaks@1 breaks@2 +u@1", "+u@2", "start failed", "", "u@2"),
    ("and it starts once it can", "breaks@1 +u@1 heals@1", "+u@1", "start", "u@1", ""),
    ("also in another netns", "breaks@1 +u@1", "+u@2", "start", "u@2", ""),
    ("a failed replacement costs nothing", "+u@1 breaks@2", "+u@2", "replace failed", "u@1", "u@2"),
    ("and is cancelled by the old netns", "+u@1 breaks@2 +u@2", "+u@1", "confirm", "u@1", ""),
    ("a second uid for a served netns", "+u@1", "+v@1", "refuse", "u@1", "v@1"),
    ("also where it is served elsewhere", "+u@1 +v@2", "+v@1", "refuse", "u@1 v@2", "v@1"),
    ("a netns that was left may be taken", "+u@1 +u@2", "+v@1", "start", "u@2 v@1", ""),
    ("also by a holder who waits", "+u@1 breaks@2 +u@2", "+v@1", "take", "v@1", "u@2"),
    ("though it cannot start", "+u@1 breaks@2 +u@2 breaks@1", "+v@1", "take failed", "", "u@2 v@1"),
    ("Keep starts nothing", "", "=u", "remember", "", ""),
    ("Keep of one that runs", "+u@1 . connect", "=u", "remember", "u@1", ""),
    ("Keep of a pending one", "breaks@1 +u@1 connect", "=u", "remember", "", "u@1"),
    ("Del does not stop it now", "+u@1", "-u", "forget", "u@1", ""),
    ("Del ends what was pending", "breaks@1 +u@1", "-u", "forget", "", ""),
    ("Del ends a pending replacement", "+u@1 breaks@2 +u@2", "-u", "forget", "u@1", ""),
    ("Del of a uid that nobody knows", "", "-u", "forget", "", ""),
    ("SnapshotSent with nothing", "", ".", "reconcile", "", ""),
    ("what was added stays", "+u@1", ".", "reconcile", "u@1", ""),
    ("what was deleted meanwhile stops", "+u@1 -u", ".", "reconcile -u", "", ""),
    ("and what was not named", "+u@1 +v@2 . connect +v@2", ".", "reconcile -u", "v@2", ""),
    ("what was kept stays", "+u@1 +v@2 . connect =u =v", ".", "reconcile", "u@1 v@2", ""),
    ("added again after a Del stays", "+u@1 -u +u@1", ".", "reconcile", "u@1", ""),
    ("an empty snapshot stops all", "+u@1 +v@2 . connect", ".", "reconcile -u,v", "", ""),
    (
        "named by a failed replacement",
        "+u@1 . connect breaks@2 +u@2",
        ".",
        "reconcile",
        "u@1",
        "u@2",
    ),
    ("named by a refusal", "+u@1 +v@2 . connect +v@1 =u", ".", "reconcile", "u@1 v@2", "v@1"),
    ("pending and named stays", "breaks@1 +u@1 . connect =u", ".", "reconcile", "", "u@1"),
    ("pending and not named ends", "breaks@1 +u@1 . connect", ".", "reconcile", "", ""),
    ("names of a cut snapshot are void", "+u@1 connect", ".", "reconcile -u", "", ""),
]

AFTER_SNAPSHOT_SENT = [
    ("Add of an unknown uid starts it", ".", "+u@1", "start", "u@1", ""),
    ("Add again in the same netns", "+u@1 .", "+u@1", "confirm", "u@1", ""),
    ("Add in another netns replaces", "+u@1 .", "+u@2", "replace", "u@2", ""),
    ("Add that cannot start is pending", "breaks@1 .", "+u@1", "start failed", "", "u@1"),
    (
        "a failed replacement costs nothing",
        "+u@1 . breaks@2",
        "+u@2",
        "replace failed",
        "u@1",
        "u@2",
    ),
    ("and is cancelled by the old netns", "+u@1 . breaks@2 +u@2", "+u@1", "confirm", "u@1", ""),
    ("a second uid for a served netns", "+u@1 .", "+v@1", "refuse", "u@1", "v@1"),
    ("of one who waits elsewhere", "+u@1 . breaks@2 +u@2", "+v@1", "take", "v@1", "u@2"),
    ("Keep is a violation", "+u@1 .", "=u", "violation", "u@1", ""),
    ("of an unknown uid as well", "+u@1 .", "=v", "violation", "u@1", ""),
    ("Del stops it", "+u@1 .", "-u", "stop", "", ""),
    ("Del ends what was pending", "breaks@1 . +u@1", "-u", "stop", "", ""),
    ("Del ends both", "+u@1 . breaks@2 +u@2", "-u", "stop", "", ""),
    ("Del of a uid that nobody knows", "+u@1 .", "-v", "stop", "u@1", ""),
    ("Del again", "+u@1 . -u", "-u", "stop", "", ""),
    ("after Del the netns is free", "+u@1 . -u", "+v@1", "start", "v@1", ""),
    ("a second SnapshotSent is a violation", "+u@1 .", ".", "violation", "u@1", ""),
    ("and costs no pending one", "breaks@1 +u@1 .", ".", "violation", "", "u@1"),
]

CONNECTIONS = [
    ("an end stops nothing", "+u@1 .", "disconnect", "", "u@1", ""),
    ("in a snapshot neither", "+u@1 . connect +v@2", "disconnect", "", "u@1 v@2", ""),
    ("and forgets nothing", "breaks@1 +u@1 .", "disconnect", "", "", "u@1"),
    ("nor does a new one", "breaks@2 +u@1 +u@2 . disconnect", "connect", "", "u@1", "u@2"),
    ("which has a snapshot again", "+u@1 . disconnect connect +u@1", ".", "reconcile", "u@1", ""),
    ("after a violation too", "+u@1 . . disconnect connect", "=u", "remember", "u@1", ""),
]

ROWS = [
    pytest.param(*row[1:], id=f"{when}: {row[0]}")
    for when, rows in (
        ("before", BEFORE_SNAPSHOT_SENT),
        ("after", AFTER_SNAPSHOT_SENT),
        ("connection", CONNECTIONS),
    )
    for row in rows
]


@pytest.mark.parametrize(("before", "event", "outcome", "served", "pending"), ROWS)
def test_row(before: str, event: str, outcome: str, served: str, pending: str) -> None:
    script = Script()
    script.all(before)
    assert script.do(event) == outcome
    assert (script.served(), script.pending()) == (served, pending)


def test_every_cell_of_the_two_tables_is_met_by_a_row() -> None:
    requests = {"+": z.ADD, "-": z.DEL, "=": z.KEEP, ".": z.SNAPSHOT_SENT}
    cells, relations = set(), set()
    for _, before, event, outcome, *_ in BEFORE_SNAPSHOT_SENT + AFTER_SNAPSHOT_SENT:
        script = Script()
        script.all(before)
        kind = requests[event[0]]
        cells.add((kind, script.side.phase, outcome.split()[0]))
        if kind == z.ADD:
            relation = script.side.relation(*event[1:].split("@"))
            relations.add((script.side.phase, relation, outcome.split()[0]))
    assert {(*key, action) for key, action in z.OTHERS.items()} <= cells
    phases = (z.SNAPSHOT, z.STEADY)
    assert {(phase, *item) for phase in phases for item in z.ADDS.items()} <= relations


def test_ready_is_an_acknowledged_snapshot_and_waits_for_no_workload() -> None:
    """Istio's is not ready as long as one workload is pending."""
    script = Script()
    assert not script.side.ready
    script.all("breaks@1 +u@1")
    assert not script.side.ready
    script.do(".")
    assert script.side.ready
    script.do(".")
    assert script.side.ready
    script.do("disconnect")
    assert not script.side.ready
    script.do("connect")
    assert not script.side.ready


def test_a_retry_names_nothing() -> None:
    """A workload that starts by itself in the middle of a snapshot is not part of that snapshot."""
    script = Script()
    script.all("breaks@1 +u@1 . connect heals@1")
    assert script.side.relation("u", "1") == z.NEW
    script.side.served("u", "1")
    assert (script.served(), script.pending()) == ("u@1", "")
    assert script.do(".") == "reconcile -u"


def test_a_replacement_that_starts_by_itself_frees_the_old_netns() -> None:
    script = Script()
    script.all("+u@1 . breaks@2 +u@2 heals@2")
    script.side.served("u", "2")
    assert (script.served(), script.pending()) == ("u@2", "")
    assert script.do("+v@1") == "start"


def test_a_refused_one_takes_over_when_the_holder_is_gone() -> None:
    script = Script()
    script.all("+u@1 . +v@1")
    assert script.side.relation("v", "1") == z.TAKEN
    script.do("-u")
    assert script.side.relation("v", "1") == z.NEW
    script.side.served("v", "1")
    assert (script.served(), script.pending()) == ("v@1", "")


# ---- netns that pass from one uid to another while we were not connected -------------------------


def test_two_uids_that_swap_their_netns() -> None:
    """Each runs where the other is to be, and gives way: the agent has named another for it."""
    script = Script()
    script.all("+u@1 +v@2 . disconnect connect +u@2 +v@1 .")
    retry_until_nothing_moves(script)
    assert (script.served(), script.pending()) == ("u@2 v@1", "")


def test_a_holder_whose_new_netns_fails_gives_its_old_one_to_another() -> None:
    script = Script()
    script.all("+u@1 . disconnect connect breaks@2 +u@2 +v@1 .")
    retry_until_nothing_moves(script)
    assert (script.served(), script.pending()) == ("v@1", "u@2")
    script.do("heals@2")
    retry_until_nothing_moves(script)
    assert (script.served(), script.pending()) == ("u@2 v@1", "")


def retry_until_nothing_moves(script: Script) -> None:
    """What the backoff of a ztunnel comes to."""
    moved = True
    while moved:
        moved = False
        for uid, netns in list(script.side.pending.items()):
            action = z.ADDS[script.side.relation(uid, netns)]
            if action != z.REFUSE and netns not in script.broken:
                if action == z.TAKE:
                    script.side.stopped(script.side.holders[netns])
                script.side.served(uid, str(netns))
                moved = True
