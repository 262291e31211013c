"""The words of add, del, list and status, and how a netns reads from another working directory."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyztun.cni.arguments import UsageError
from pyztun.cni.commands import client, words
from pyztun.cni.commands.add import absolute
from support.programs import cni

OPTIONS = ("--uid", "--label")
COMMANDS = ("add", "del", "list", "status")


@pytest.mark.parametrize(
    ("line", "values", "rest"),
    [
        ("a", {}, ["a"]),
        ("--uid u a", {"--uid": "u"}, ["a"]),
        ("a --uid=u", {"--uid": "u"}, ["a"]),
        ("a --uid=", {"--uid": ""}, ["a"]),
        ("a --uid u --uid v", {"--uid": "v"}, ["a"]),
        ("--uid --json a", {"--uid": "--json"}, ["a"]),
        ("-- --uid", {}, ["--uid"]),
        ("-", {}, ["-"]),
        ("--control S --timeout 3 a", {"--control": "S", "--timeout": "3"}, ["a"]),
    ],
)
def test_accepted(line: str, values: dict[str, str], rest: list[str]) -> None:
    found = words.read(line.split(), OPTIONS)
    assert (found.values, found.rest) == (values, rest)


def test_labels_add_up() -> None:
    found = words.read(["--label", "a=b", "--label=c=d=e", "--label", "f="], OPTIONS)
    assert found.labels == {"a": "b", "c": "d=e", "f": ""}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--nonsense", "unknown option --nonsense"),
        ("-x", "unknown option -x"),
        ("--json=yes", "unknown option"),
        ("--name n", "unknown option --name"),
        ("--uid", "--uid needs a value"),
        ("--label x", "not KEY=VALUE"),
        ("--label =x", "not KEY=VALUE"),
    ],
)
def test_refused(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        words.read(line.split(), OPTIONS)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf", "601"])
def test_refused_timeouts(text: str) -> None:
    with pytest.raises(UsageError, match="--timeout"):
        assert words.read([f"--timeout={text}"]).timeout


def test_the_socket_is_the_option_else_the_variable_else_the_default() -> None:
    given_option = words.read(["--control", "S"])
    assert given_option.control({"PYZTUN_CONTROL": "V"}) == "S"
    assert words.read([]).control({"PYZTUN_CONTROL": "V"}) == "V"
    assert words.read([]).control({"PYZTUN_CONTROL": ""}) == "/run/pyztun/agent.sock"
    assert words.read([]).control({}) == "/run/pyztun/agent.sock"
    with pytest.raises(UsageError, match="--control is empty"):
        words.read(["--control="]).control({})


@given(st.lists(st.text(max_size=8) | st.sampled_from(["--uid", "--json", "--", "-h"]), max_size=5))
def test_any_words_are_read_or_refused(line: list[str]) -> None:
    with contextlib.suppress(UsageError):
        words.read(line, OPTIONS)


@pytest.mark.parametrize(
    ("written", "whole"),
    [
        ("ns2", "/run/netns/ns2"),
        ("/run/netns/ns2", "/run/netns/ns2"),
        ("/a//b/./c", "/a/b/c"),
        ("pid:7", "pid:7"),
        ("fd:7", "fd:7"),
        ("pid:self", "/run/netns/pid:self"),
        ("./ns2", "{here}/ns2"),
        ("a/b", "{here}/a/b"),
        ("../x", "{here}/../x"),
        ("pid:7/x", "{here}/pid:7/x"),
    ],
)
def test_a_netns_reads_the_same_from_anywhere(written: str, whole: str) -> None:
    assert absolute(written) == whole.format(here=os.getcwd())


@given(st.text(st.characters(exclude_characters="\0"), max_size=20))
def test_a_key_is_one_part_of_a_path(key: str) -> None:
    from urllib.parse import unquote

    with contextlib.suppress(UnicodeEncodeError):  # surrogates that stand for no byte
        text = client.encoded(key)
        assert text.isascii()
        assert set("/?#. ").isdisjoint(text)
        assert unquote(text, errors="surrogateescape") == key


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    done = cni(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: pyztun-cni {name} ")
    for text in ("--json", "--control", "exit status:", "examples:", f"  pyztun-cni {name}"):
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "line",
    [
        "add",
        "add a b",
        "add --capture tproxy a",
        "add a --timeout x",
        "add a --control=",
        "add --uid",
        "del",
        "del a b",
        "del --uid u",
        "list a",
        "list --nonsense",
        "status a",
        "watch",
    ],
)
def test_usage_is_exit_2_and_one_line(line: str) -> None:
    done = cni(*line.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--help" in done.stderr


def test_an_empty_netns_is_usage() -> None:
    assert cni("add", "").returncode == 2
    assert cni("del", "").returncode == 2


def test_the_help_of_the_command_names_them(tmp_path: Path) -> None:
    assert "agent|add|del|list|status" in cni("--help").stdout
    # The name of a subcommand as a file is still to be had.
    done = cni(tmp_path / "add", "/proc/self/ns/net")
    assert done.returncode == 1
