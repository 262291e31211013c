"""The command line of pyztun-cni: words in, one immutable object or one clear refusal out."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyztun.cni.arguments import SUBCOMMANDS, Asked, UsageError, parse
from support.programs import cni

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("S a", {"action": "take", "socket": "S", "references": ("a",), "timeout": 2.0}),
    ("S a b ./c pid:7 fd:3", {"references": ("a", "b", "./c", "pid:7", "fd:3")}),
    ("--release S a", {"action": "release", "references": ("a",)}),
    ("S --release a cookie:7", {"action": "release", "references": ("a", "cookie:7")}),
    ("S --release cookie:18446744073709551615", {"action": "release"}),
    ("S --list", {"action": "list", "socket": "S", "references": ()}),
    ("--list S", {"action": "list"}),
    ("S a --timeout 0.5", {"timeout": 0.5}),
    ("S a --timeout=0.5", {"timeout": 0.5}),
    ("--timeout 86400 S a", {"timeout": 86400.0}),
    ("S a --require-ready", {"require_ready": True}),
    ("S a -v", {"verbose": True}),
    ("S a --verbose", {"verbose": True}),
    ("S -- -a --list", {"action": "take", "references": ("-a", "--list")}),
    ("-- --help x", {"action": "take", "socket": "--help", "references": ("x",)}),
    ("./add a", {"socket": "./add"}),
    ("S add", {"references": ("add",)}),
    ("- a", {"socket": "-"}),
    ("S pid/x:y", {"references": ("pid/x:y",)}),
    ("S /run/a:b", {"references": ("/run/a:b",)}),
    ("S other:7", {"references": ("other:7",)}),
    ("--help", {"action": "help"}),
    ("-h nonsense", {"action": "help"}),
    ("S a --version", {"action": "version"}),
]

REFUSED = [
    ("", "SOCKET is missing, or a command: agent, add, del, list, status"),
    ("--list", "SOCKET is missing, or a command: agent, add, del, list, status"),
    ("S", "NETNS is missing"),
    ("S --release", "NETNS is missing"),
    ("S --list a", "--list takes no NETNS"),
    ("S --list --release", "exclude each other"),
    ("S a --nonsense", "unknown option --nonsense"),
    ("S a -x", "unknown option -x"),
    ("S a --list=yes", "unknown option"),
    ("S a --timeout", "--timeout needs"),
    ("S a --timeout=", "not a number"),
    ("S a --timeout x", "not a number"),
    ("S a --timeout 0", "must be more"),
    ("S a --timeout -1", "must be more"),
    ("S a --timeout nan", "must be more"),
    ("S a --timeout inf", "must be more"),
    ("S a --timeout 86401", "must be more"),
    ("S a --timeout 1e999", "must be more"),
    ("S cookie:7", "only for --release"),
    ("S --release cookie:", "needs a number"),
    ("S --release cookie:x", "needs a number"),
    ("S --release cookie:-1", "needs a number"),
    ("S --release cookie:18446744073709551616", "64 bits"),
    ("S --release cookie:" + "9" * 5000, "needs a number"),
    ("S pid:", "needs a number"),
    ("S pid:self", "needs a number"),
    ("S fd:2147483648", "no such fd"),
    ("S pid:99999999999", "no such pid"),
    ("S fd:\u0663", "needs a number"),
]


@pytest.mark.parametrize(("line", "expected"), ACCEPTED)
def test_accepted(line: str, expected: dict[str, Any]) -> None:
    asked = parse(line.split())
    assert {name: getattr(asked, name) for name in expected} == expected


@pytest.mark.parametrize(("line", "why"), REFUSED, ids=lambda text: text[:40])
def test_refused(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(line.split())


def test_an_empty_word_is_not_a_netns() -> None:
    with pytest.raises(UsageError, match="empty word"):
        parse(["S", ""])


@pytest.mark.parametrize("word", SUBCOMMANDS)
def test_a_subcommand_is_reserved(word: str) -> None:
    with pytest.raises(UsageError, match=rf"socket of that name is \./{word}"):
        parse([word, "a"])


WORDS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(["--timeout", "--list", "--release", "--", "-v", "cookie:1", "fd:3", "pid:0"]),
    st.text("0123456789.e-", max_size=25).map("--timeout={}".format),
    st.text("0123456789-", max_size=25).map("fd:{}".format),
)


@given(st.lists(WORDS, max_size=6))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    asked = None
    with contextlib.suppress(UsageError):
        asked = parse(words)
    if asked is None:
        return
    assert asked.action in ("take", "release", "list", "help", "version")
    assert 0 < asked.timeout <= 86400
    assert bool(asked.references) == (asked.action in ("take", "release"))


def test_settings_do_not_change() -> None:
    asked = Asked("take", "S", ("a",))
    with pytest.raises(AttributeError, match="do not change"):
        asked.timeout = 3.0
    with pytest.raises(AttributeError):
        asked.other = 1


@pytest.mark.parametrize("words", [[], ["S"], ["S", "a", "--nonsense"], ["S", "cookie:7"]])
def test_usage_is_exit_2_and_says_where_help_is(words: list[str]) -> None:
    done = cni(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyztun-cni: ")
    assert "pyztun-cni --help" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_help_and_version_need_no_socket() -> None:
    shown = cni("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for option in ("--release", "--list", "--timeout", "--require-ready", "--verbose", "--version"):
        assert option in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 110
    version = cni("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("pyztun-cni 0.")
