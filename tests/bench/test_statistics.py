"""The arithmetic of the benchmark: what a verdict rests on."""

import pytest

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
    assert ratio(samples, "ours", "floor").value == 1.0
    samples["ours"] = [3.0, 10.0, 100.0]
    samples["floor"] = [1.0, 20.0, 90.0]
    assert ratio(samples, "ours", "floor").value == pytest.approx(100 / 90)


def test_ratio_refuses_samples_of_different_length() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio({"ours": [1.0], "floor": [1.0, 2.0]}, "ours", "floor")


@pytest.mark.parametrize(
    ("value", "budget", "verdict"),
    [(1.1, 1.1, "PASS"), (1.0, 1.1, "PASS"), (1.11, 1.1, "over"), (9.0, None, "-")],
)
def test_verdict(value: float, budget: float | None, verdict: str) -> None:
    check = Check("ours", value, "x", budget)
    assert check.verdict == verdict
    assert check.over == (verdict == "over")


def test_row_counts_its_rounds_and_keeps_its_ratios() -> None:
    row = Row("listen", "three listeners", "us")
    assert row.rounds == 0
    row.samples = {"floor": [1.0, 2.0, 4.0], "ours": [2.0, 4.0, 8.0]}
    row.compare("ours", "floor", 1.5)
    (check,) = row.checks
    assert row.rounds == 3
    assert (check.contender, check.base, check.value, check.over) == ("ours", "floor", 2.0, True)
