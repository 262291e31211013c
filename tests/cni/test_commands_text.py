"""Tables and text: harmless, aligned, as wide as the terminal."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyztun.cni.commands import text
from pyztun.cni.commands.text import LEFT, RIGHT, Column, age, shown, table, width_of

COLUMNS = (Column("NAME", RIGHT, 6), Column("PATH", LEFT, 8), Column("N"), Column("STATE"))
ROW = ["a-long-name-of-a-pod", "/run/netns/a-long-name-of-a-pod", "12345", "pending: no ztunnel"]


def test_a_pipe_gets_whole_cells_in_columns() -> None:
    title, first, second = table(COLUMNS, [ROW, ["b", "/b", "1", "ready"]], None)
    assert first == "  ".join(ROW)
    assert second.index("ready") == first.index("pending") == title.index("STATE")
    assert second.index("/b") == title.index("PATH")


@pytest.mark.parametrize("width", [60, 70, 80, 100, 200])
def test_a_terminal_gets_what_fits(width: int) -> None:
    lines = list(table(COLUMNS, [ROW] * 3, width))
    assert max(map(width_of, lines)) <= width
    assert all("12345" in line for line in lines[1:] if "netns" in line or "pod" in line)


def test_the_end_of_a_path_is_kept_and_the_beginning_of_a_name() -> None:
    line = list(table(COLUMNS, [ROW], 60))[1]
    name, path, *_ = line.split()
    assert name.startswith("a-long")
    assert name.endswith("…")
    assert path.startswith("…")
    assert path.endswith("-pod")


def test_a_long_reason_is_wrapped_below_itself() -> None:
    reason = "pending: " + "word " * 30 + "x" * 200
    lines = list(table(COLUMNS, [["a", "/a", "1", reason]], 60))
    assert max(map(len, lines)) <= 60
    column = lines[0].index("STATE")
    assert all(line[:column].strip() == "" for line in lines[2:])
    assert "".join(line[column:].replace(" ", "") for line in lines[1:]) == reason.replace(" ", "")


def test_wide_and_combining_characters_are_as_wide_as_they_look() -> None:
    assert [width_of(each) for each in ("ab", "世界", "e\u0301", "ä", "\u200d")] == [2, 4, 1, 1, 0]
    rows = [["世界", "/a", "1", "ready"], ["ab", "/a", "1", "ready"]]
    starts = {width_of(line[: line.index("/a")]) for line in list(table(COLUMNS, rows, None))[1:]}
    assert len(starts) == 1


CELLS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf"]), max_size=60)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), max_size=5), st.integers(1, 120))
def test_any_cells_make_a_table(rows: list[tuple[str, ...]], width: int) -> None:
    lines = list(table(COLUMNS, [list(map(shown, row)) for row in rows], width))
    assert len(lines) >= 1 + len(rows)
    assert all(line.isprintable() for line in lines)


@given(st.text())
def test_whatever_is_shown_can_be_printed(raw: str) -> None:
    assert shown(raw).isprintable()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (61, "1m"),
        (3600, "1h"),
        (100000, "27h"),
        (864000, "10d"),
    ],
)
def test_ages(seconds: int, expected: str) -> None:
    moment = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    assert age(f"{moment:%Y-%m-%dT%H:%M:%SZ}") in (expected, expected.replace("59s", "1m"))


@pytest.mark.parametrize("moment", [None, "", "x", 5, "9999-99-99T00:00:00Z", "\x1b[31m"])
def test_what_is_no_moment_has_no_age(moment: object) -> None:
    assert age(moment) == "?"


def test_ages_are_short() -> None:
    assert len(age("0001-01-01T00:00:00Z")) <= 8
    assert text.AGES[0][2] == "s"
