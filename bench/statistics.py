"""Medians, ratios and verdicts. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Samples = Mapping[str, Sequence[float]]
"""For each contender one number a round, in the order of the rounds."""


@dataclass(frozen=True)
class Summary:
    """What one contender took."""

    minimum: float
    median: float
    maximum: float


def summarize(values: Sequence[float]) -> Summary:
    """The summary of at least one value."""
    return Summary(min(values), statistics.median(values), max(values))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Between these two lies the middle half of the values."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@dataclass(frozen=True)
class Check:
    """One number beside its budget.

    :ivar unit: ``x`` for a ratio, else a unit such as KiB.
    :ivar budget: the number must not be above it; None: for information only.
    :ivar aim: what we would like, beyond the budget.
    :ivar at_least: the number must not be below its budget instead.
    :ivar middle: the middle half of what the number is the median of.
    :ivar contender: of a ratio, what is compared with ``base``; else empty.
    """

    name: str
    value: float
    unit: str
    budget: float | None
    aim: float | None = None
    middle: tuple[float, float] | None = None
    contender: str = ""
    base: str = ""
    at_least: bool = False

    @property
    def over(self) -> bool:
        if self.budget is None:
            return False
        return self.value < self.budget if self.at_least else self.value > self.budget

    @property
    def verdict(self) -> str:
        """``PASS``, ``over`` or ``-`` (no budget)."""
        if self.budget is None:
            return "-"
        return "over" if self.over else "PASS"


def ratio(
    samples: Samples,
    contender: str,
    base: str,
    budget: float | None = None,
    aim: float | None = None,
    *,
    at_least: bool = False,
) -> Check:
    """The median over the rounds of contender / base, each taken within one round."""
    pairs = zip(samples[contender], samples[base], strict=True)
    values = [one / other for one, other in pairs]
    return Check(
        f"{contender} / {base}",
        statistics.median(values),
        "x",
        budget,
        aim,
        quartiles(values),
        contender,
        base,
        at_least,
    )


@dataclass
class Row:
    """One piece of work and what was measured of it.

    :ivar unit: of the samples.
    :ivar notes: what a reader must know, such as why a contender is missing.
    :ivar skipped: why nothing was measured, else empty.
    :ivar load: of the machine when the row began, over one minute.
    """

    name: str
    title: str
    unit: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    load: float = 0.0

    @property
    def rounds(self) -> int:
        return len(next(iter(self.samples.values()), ()))

    def compare(
        self,
        contender: str,
        base: str,
        budget: float | None = None,
        aim: float | None = None,
        *,
        at_least: bool = False,
    ) -> None:
        """Adds the ratio of two contenders; the first of a contender stands in its own line."""
        check = ratio(self.samples, contender, base, budget, aim, at_least=at_least)
        self.checks.append(check)
