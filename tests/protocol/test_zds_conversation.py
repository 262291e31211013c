"""The agent's side of ZDS row by row: what is said in each phase, to whom, and what ends it.

A Talk is one conversation with an agent's list; its words are those of the rows.
"""

from __future__ import annotations

import pytest

from pyztun import ProtocolError
from pyztun.protocol import zds
from pyztun.protocol.zds import Add, Del, Keep, SnapshotSent, WorkloadInfo
from pyztun.protocol.zds_agent import (
    HELLO,
    SNAPSHOT,
    STEADY,
    Answered,
    Conversation,
    Offer,
    newest,
)

INFO, OTHER_INFO = WorkloadInfo("n", "m", "s"), WorkloadInfo("n2", "m", "s")


class Talk:
    """One conversation, and the list that it is about.

    :ivar newest: whether it gets Adds beyond its snapshot.
    """

    def __init__(self) -> None:
        self.wanted: dict[str, Offer] = {}
        self.side = Conversation(self.wanted)
        self.newest = True

    def do(self, word: str) -> None:
        """One event.

        ``+u@1`` is wanted, ``+u`` is wanted and cannot be opened, ``-u`` is no longer, ``~u`` has
        another info, ``?u`` is to be offered again; ``older`` and ``newest``; ``hello``, ``ack``
        and ``nack`` come from ztunnel, after what there was to say has been said.
        """
        if word in ("older", "newest"):
            self.newest = word == "newest"
        elif word == "hello":
            self.side.received(zds.hello())
        elif word in ("ack", "nack"):
            self.say()
            self.side.received(zds.ack() if word == "ack" else zds.nack("why"))
        else:
            self.change(word[0], *word[1:].partition("@")[::2])

    def change(self, sign: str, uid: str, netns: str) -> None:
        if sign == "+":
            self.wanted[uid] = Offer(uid, netns or None, INFO)
        elif sign == "~":
            self.wanted[uid] = self.wanted[uid]._replace(info=OTHER_INFO)
        elif sign == "-":
            del self.wanted[uid]
        self.side.changed(uid)

    def all(self, words: str) -> Talk:
        for word in words.split():
            self.do(word)
        return self

    def say(self) -> str:
        """What is said now, in the words above; ``=u`` is a Keep, ``.`` SnapshotSent."""
        request = self.side.next_request(self.newest)
        offer = self.side.offered()
        if isinstance(request, Add):
            assert offer == self.wanted[request.uid]
            assert offer.info == request.info
            return f"+{request.uid}@{offer.netns}"
        assert offer is None, "a descriptor goes with an Add alone"
        if isinstance(request, Keep | Del):
            return ("=" if isinstance(request, Keep) else "-") + request.uid
        return "" if request is None else "."

    def says_all(self) -> str:
        """Everything that there is to say, each agreed to."""
        said = []
        while word := self.say():
            said.append(word)
            self.side.received(zds.ack())
        return " ".join(said)

    def agreed(self) -> str:
        return " ".join(f"{uid}@{offer.netns}" for uid, offer in sorted(self.side.agreed.items()))


# before ; everything that is said then ; what is agreed afterwards ; the phase afterwards
ROWS = [
    ("nothing before the Hello", "+u@1", "", "", HELLO),
    ("an empty snapshot", "hello", ".", "", STEADY),
    ("a snapshot in the order of the list", "+v@2 +u@1 hello", "+v@2 +u@1 .", "u@1 v@2", STEADY),
    ("Keep for what cannot be opened now", "+u@1 +v hello", "+u@1 =v .", "u@1", STEADY),
    ("what is gone is left out", "+u@1 +v@2 -u hello", "+v@2 .", "v@2", STEADY),
    ("gone before its turn: also a Del", "+u@1 +v@2 hello ack -v", ". -v", "u@1", STEADY),
    ("gone after its turn: a Del behind it", "+u@1 hello ack -u", ". -u", "", STEADY),
    ("new in the midst of it", "+u@1 hello ack +v@2", "+v@2 .", "u@1 v@2", STEADY),
    ("replaced after its turn", "+u@1 hello ack +u@2", "+u@2 .", "u@2", STEADY),
    ("refused in it", "+u@1 hello nack", ".", "", STEADY),
    ("nor does an older one miss its snapshot", "+u@1 older hello", "+u@1 .", "u@1", STEADY),
    ("nothing to say", "+u@1 hello ack ack", "", "u@1", STEADY),
    ("a new one", "hello ack +u@1", "+u@1", "u@1", STEADY),
    ("a new netns", "+u@1 hello ack ack +u@2", "+u@2", "u@2", STEADY),
    ("a new info", "+u@1 hello ack ack ~u", "+u@1", "u@1", STEADY),
    ("the same again is not said", "+u@1 hello ack ack +u@1", "", "u@1", STEADY),
    ("offered again what is agreed", "+u@1 hello ack ack ?u", "", "u@1", STEADY),
    ("offered again what was refused", "+u@1 hello nack ack ?u", "+u@1", "u@1", STEADY),
    ("a Del", "+u@1 hello ack ack -u", "-u", "", STEADY),
    ("a Del of what was refused", "+u@1 hello nack ack -u", "-u", "", STEADY),
    ("Dels first", "+u@1 hello ack ack +v@2 -u", "-u +v@2", "v@2", STEADY),
    ("added and deleted: a Del does no harm", "hello ack +u@1 -u", "-u", "", STEADY),
    ("deleted and added: only what differs", "+u@1 hello ack ack -u +u@1", "", "u@1", STEADY),
    ("deleted and added elsewhere", "+u@1 hello ack ack -u +u@2", "+u@2", "u@2", STEADY),
    ("no Keep after the snapshot", "hello ack +u", "", "", STEADY),
    ("until it can be opened", "hello ack +u +u@1", "+u@1", "u@1", STEADY),
    ("an older one: no Adds", "hello ack older +u@1", "", "", STEADY),
    ("an older one: Dels", "+u@1 hello ack ack older -u", "-u", "", STEADY),
    ("that becomes the newest", "hello ack older +u@1 newest", "+u@1", "u@1", STEADY),
    (
        "and missed several",
        "+u@1 hello ack ack older +u@2 +v@3 +w@4 -w newest",
        "-w +u@2 +v@3",
        "u@2 v@3",
        STEADY,
    ),
]


@pytest.mark.parametrize(
    ("before", "said", "agreed", "phase"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_row(before: str, said: str, agreed: str, phase: str) -> None:
    talk = Talk().all(before)
    assert talk.says_all() == said
    assert (talk.agreed(), talk.side.phase) == (agreed, phase)


def test_one_request_is_under_way() -> None:
    talk = Talk().all("+u@1 +v@2 hello")
    assert talk.say() == "+u@1"
    assert talk.side.next_request(newest=True) is None
    assert talk.side.due == Add("u", INFO)
    assert not talk.side.settled("u")
    assert not talk.side.settled("v")
    answer = talk.side.received(zds.ack())
    assert answer == Answered(Add("u", INFO), Offer("u", "1", INFO), "")
    assert talk.side.due is None
    assert talk.side.settled("u")


@pytest.mark.parametrize(
    ("before", "request_"),
    [("+u hello", Keep("u")), ("+u@1 hello ack ack -u", Del("u")), ("hello", SnapshotSent())],
    ids=["keep", "del", "snapshot-sent"],
)
def test_an_answer_is_told_with_its_request(before: str, request_: zds.Request) -> None:
    talk = Talk().all(before)
    talk.say()
    assert talk.side.received(zds.ack()) == Answered(request_, None, "")


def test_snapshot_ends_with_the_ack_not_with_the_message() -> None:
    talk = Talk().all("hello")
    assert talk.side.phase == SNAPSHOT
    assert talk.say() == "."
    assert talk.side.phase == SNAPSHOT
    talk.side.received(zds.ack())
    assert talk.side.phase == STEADY


def test_an_add_that_an_older_one_is_not_told_is_not_settled() -> None:
    talk = Talk().all("hello ack older +u@1")
    assert talk.says_all() == ""
    assert not talk.side.settled("u")
    talk.do("newest")
    assert talk.says_all() == "+u@1"
    assert talk.side.settled("u")


def test_what_is_known_already_is_settled_while_something_else_is_under_way() -> None:
    talk = Talk().all("+u@1 hello ack ack +v@2")
    assert talk.say() == "+v@2"
    talk.do("+u@1")
    assert talk.side.settled("u")
    assert not talk.side.settled("v")
    talk.do("+u@3")
    assert not talk.side.settled("u")


# ---- refusals ------------------------------------------------------------------------------------


def test_a_refusal_is_remembered_until_the_uid_is_agreed_or_gone() -> None:
    talk = Talk().all("+u@1 +v@2 hello nack nack ack")
    assert talk.side.refused == {"u": "why", "v": "why"}
    assert not talk.side.knows("u")
    talk.all("?u ack -v")
    assert talk.side.refused == {}
    assert talk.side.knows("u")


def test_a_refused_replacement_is_no_longer_agreed() -> None:
    """Whether the old netns is served is a matter of whose ztunnel it is."""
    talk = Talk().all("+u@1 hello ack ack +u@2 nack")
    assert talk.agreed() == ""
    talk.all("+u@1")
    assert talk.says_all() == "+u@1", "so going back is said"


def test_a_refused_del_is_done_all_the_same() -> None:
    """There is nothing that one could do about it, and the next snapshot leaves it out."""
    talk = Talk().all("+u@1 hello ack ack -u nack")
    assert (talk.agreed(), talk.says_all()) == ("", "")


def test_knows_means_exactly_what_is_wanted() -> None:
    talk = Talk().all("+u@1 hello ack ack")
    assert talk.side.knows("u")
    assert not talk.side.knows("nobody")
    for change in ("~u", "+u@2", "+u", "-u"):
        other = Talk().all(f"+u@1 hello ack ack {change}")
        assert not other.side.knows("u"), change


def test_what_changed_while_its_answer_was_awaited_is_said_again() -> None:
    talk = Talk().all("hello ack +u@1")
    assert talk.say() == "+u@1"
    talk.do("+u@2")
    talk.side.received(zds.ack())
    assert (talk.agreed(), talk.side.knows("u")) == ("u@1", False)
    assert talk.says_all() == "+u@2"


def test_what_was_deleted_while_its_answer_was_awaited() -> None:
    talk = Talk().all("hello ack +u@1")
    assert talk.say() == "+u@1"
    talk.do("-u")
    talk.side.received(zds.ack())
    assert talk.says_all() == "-u"
    assert talk.agreed() == ""


# ---- violations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "message", "why"),
    [
        ("", "08", "not a Hello"),
        ("hello", "0a00", "not asked for"),
        ("hello", "0801", "not asked for"),
        ("hello ack", "0a00", "not asked for"),
        ("+u@1 hello ack ack", "0a00", "not asked for"),
        ("hello say", "08", "not a WorkloadResponse"),
        ("hello say", "0801", "without an ack"),
        ("hello say", "", "without an ack"),
        ("hello say", "0a030a0178", "SnapshotSent was refused: x"),
    ],
)
def test_what_ends_a_conversation(before: str, message: str, why: str) -> None:
    talk = Talk().all(before.removesuffix(" say"))
    if before.endswith(" say"):
        assert talk.say() == "."
    with pytest.raises(ProtocolError, match=why):
        talk.side.received(bytes.fromhex(message))


def test_a_hello_of_another_version_is_taken() -> None:
    """Istio's agent logs it, and so do we."""
    talk = Talk()
    assert talk.side.received(bytes.fromhex("0807")) is None
    assert talk.side.phase == SNAPSHOT


# ---- several -------------------------------------------------------------------------------------


def test_the_newest_is_the_last_that_has_said_hello() -> None:
    first, second, third = (Talk().side for _ in range(3))
    both = [first, second, third]
    assert newest(both) is None
    second.received(zds.hello())
    assert newest(both) is second
    first.received(zds.hello())
    assert newest(both) is second, "by the order of connection"
    third.received(zds.hello())
    assert newest(both) is third
    assert newest(both[:2]) is second, "when the newest has died"
