"""The arithmetic of the benchmark: what a verdict rests on."""

import json
from pathlib import Path

import pytest

from bench import report, rounds
from bench.statistics import Check, Row, quartiles, ratio, summarize


def test_summary_of_one_and_of_many() -> None:
    one = summarize([7.0])
    assert (one.minimum, one.median, one.maximum) == (7.0, 7.0, 7.0)
    many = summarize([9.0, 1.0, 2.0, 100.0])
    assert (many.minimum, many.median, many.maximum) == (1.0, 5.5, 100.0)


def test_quartiles_enclose_the_middle_half() -> None:
    assert quartiles([5.0]) == (5.0, 5.0)
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 4.0)


def test_ratio_is_taken_within_each_round() -> None:
    """The host got ten times slower in the last round: both did, and the ratio stays."""
    samples = {"ours": [2.0, 4.0, 30.0], "floor": [1.0, 2.0, 20.0]}
    check = ratio(samples, "ours", "floor", 2.0, 1.2)
    assert check.name == "ours / floor"
    assert check.value == 2.0
    assert check.middle == (1.75, 2.0)
    assert (check.unit, check.budget, check.aim) == ("x", 2.0, 1.2)


def test_ratio_of_medians_would_be_another_number() -> None:
    samples = {"ours": [1.0, 10.0, 100.0], "floor": [10.0, 1.0, 100.0]}
    assert ratio(samples, "ours", "floor", None).value == 1.0
    samples["ours"] = [3.0, 10.0, 100.0]
    samples["floor"] = [1.0, 20.0, 90.0]
    assert ratio(samples, "ours", "floor", None).value == pytest.approx(100 / 90)


def test_ratio_refuses_samples_of_different_length() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio({"ours": [1.0], "floor": [1.0, 2.0]}, "ours", "floor", None)


@pytest.mark.parametrize(
    ("value", "budget", "verdict"),
    [(1.1, 1.1, "PASS"), (1.0, 1.1, "PASS"), (1.11, 1.1, "over"), (9.0, None, "-")],
)
def test_verdict(value: float, budget: float | None, verdict: str) -> None:
    check = Check("ours", value, "x", budget)
    assert check.verdict == verdict
    assert check.over == (verdict == "over")


def test_every_contender_has_one_turn_in_every_round() -> None:
    calls: list[str] = []

    def turn_of(name: str) -> rounds.Turn:
        def turn() -> list[float]:
            calls.append(name)
            return [float(len(calls)), 1000.0, 0.0]

        return turn

    names = ["a", "b", "c"]
    samples = rounds.interleave("row", {name: turn_of(name) for name in names}, 4)
    assert [len(samples[name]) for name in names] == [4, 4, 4]
    played = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(played) == 4 + rounds.WARM_UP
    assert all(sorted(order) == names for order in played)
    assert len({tuple(order) for order in played}) > 1, "the order is drawn anew"
    # The median of a turn's batch is kept, and the warm-up is not.
    kept = sorted(value for values in samples.values() for value in values)
    assert kept == [float(n) for n in range(3 * rounds.WARM_UP + 1, len(calls) + 1)]


def _row() -> Row:
    row = Row("listen", "three listeners", "us", {"floor": [10.0, 12.0], "ours": [11.0, 13.2]})
    row.checks.append(ratio(row.samples, "ours", "floor", 1.05, 1.01))
    row.checks.append(Check("RSS", 17.25, "MB", None))
    row.notes.append("no Go here")
    return row


def test_table_shows_budget_aim_and_verdict() -> None:
    text = report.table(_row())
    assert "2 rounds, us" in text
    assert ["floor", "10.0", "11.0", "12.0"] in [line.split() for line in text.splitlines()]
    assert "1.10 x    (1.10..1.10)  budget 1.05, aim 1.01: over" in text
    assert "17.2 MB" in text
    assert "note: no Go here" in text


def test_ending_counts_only_what_has_a_budget() -> None:
    row = _row()
    assert report.ending([row]) == "over budget: 1 of 1: listen (ours / floor)"
    row.checks[0] = ratio(row.samples, "ours", "floor", 1.2)
    assert report.ending([row]) == "within budget: 1 of 1"


def test_json_has_every_sample(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    report.write_json(file, {"kernel": "Linux"}, [_row()])
    record = json.loads(file.read_text())
    assert record["machine"] == {"kernel": "Linux"}
    (row,) = record["rows"]
    assert row["samples"] == {"floor": [10.0, 12.0], "ours": [11.0, 13.2]}
    assert [check["verdict"] for check in row["checks"]] == ["over", "-"]
