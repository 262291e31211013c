"""The tables and the JSON file of the benchmark, from rows that were made up."""

import io
import json
from pathlib import Path

from rich.console import Console

from bench import report
from bench.statistics import Check, Row, ratio


def made_up() -> Row:
    samples = {"floor": [10.0, 12.0], "ours": [11.0, 13.2], "Go": [2200.0, 2640.0]}
    row = Row("listen", "three listeners", "us", samples, load=0.5)
    row.compare("ours", "floor", 1.05, 1.01)
    row.compare("ours", "Go", 0.8)
    row.checks.append(Check("RSS", 17.25, "MB", None))
    row.notes.append("no ip here")
    return row


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_table_has_a_line_for_each_contender_and_each_further_check() -> None:
    title, about, header, *lines = cells(report.table(made_up()))
    assert " ".join(title) == "listen: three listeners"
    assert " ".join(about) == "2 rounds, us, load 0.50 at the start"
    assert " ".join(header) == "min median max ratio middle half to budget"
    assert [" ".join(line) for line in lines] == [
        "floor 10.0 11.0 12.0",
        "ours 11.0 12.1 13.2 1.100 1.100..1.100 floor 1.05, aim 1.01: over",
        "Go 2200 2420 2640",
        "ours 0.005 0.005..0.005 Go 0.8: PASS",
        "RSS 17.2 MB",
        "note: no ip here",
    ]


def test_numbers_of_a_column_stand_below_its_header() -> None:
    header, floor, ours = report.table(made_up()).splitlines()[2:5]
    end = header.index("median") + len("median")
    assert floor[:end].endswith(" 11.0")
    assert ours[:end].endswith(" 12.1")


def test_table_is_plain_off_a_terminal() -> None:
    plain = report.table(made_up())
    assert plain.isascii()
    assert "\x1b" not in plain
    assert not any(line.endswith(" ") for line in plain.splitlines())


def test_table_on_a_narrow_terminal_cuts_no_number_off() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=70, color_system="standard")
    text = report.table(made_up(), terminal)
    assert "\x1b[" in text
    for number in ("12.1", "2640", "1.100", "1.100..1.100"):
        assert number in text
    assert "…" not in text


def test_skipped_row_says_why() -> None:
    row = Row("pods", "a thousand pods", skipped="the fd table is too small")
    assert report.table(row).splitlines()[1] == "  skipped: the fd table is too small"
    assert report.ending([row]) == "within budget: 0 of 0; not measured: pods"


def test_ending_counts_only_what_has_a_budget() -> None:
    row = made_up()
    assert report.ending([row]) == "over budget: 1 of 2: listen (ours / floor)"
    row.checks[0] = ratio(row.samples, "ours", "floor", 1.2)
    assert report.ending([row]) == "within budget: 2 of 2"


def test_heading_names_every_fact() -> None:
    shown = report.heading({"kernel": "Linux", "cpu": "2 of 2"})
    assert shown.splitlines() == ["kernel: Linux", "cpu:    2 of 2"]


def test_json_has_every_sample_and_every_check(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    skipped = Row("pods", "a thousand pods", skipped="no room")
    report.write_json(file, "2026-01-02T03:04:05+00:00", {"kernel": "Linux"}, [made_up(), skipped])
    record = json.loads(file.read_text())
    assert record["schema"] == report.SCHEMA
    assert record["started"] == "2026-01-02T03:04:05+00:00"
    assert record["machine"] == {"kernel": "Linux"}
    row, nothing = record["rows"]
    assert (row["rounds"], row["unit"], row["load"], row["skipped"]) == (2, "us", 0.5, None)
    assert row["contenders"][1] == {
        "name": "ours", "min": 11.0, "median": 12.1, "max": 13.2, "samples": [11.0, 13.2]
    }  # fmt: skip
    assert row["checks"][0] == {
        "name": "ours / floor",
        "contender": "ours",
        "base": "floor",
        "value": row["checks"][0]["value"],
        "unit": "x",
        "middle_half": row["checks"][0]["middle_half"],
        "budget": 1.05,
        "at_least": False,
        "aim": 1.01,
        "verdict": "over",
    }
    assert [check["verdict"] for check in row["checks"]] == ["over", "PASS", None]
    assert (nothing["skipped"], nothing["rounds"], nothing["contenders"]) == ("no room", 0, [])
