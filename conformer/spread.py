"""How far figures that differ by chance lie apart, and how far their means do: what `conformer/findings.py` says of a study's runs.

Sources: the standard error of a difference of means, and its degrees of freedom: B. L. Welch, The generalization of Student's problem when several
different population variances are involved, Biometrika 34, 1947. Student's distribution: W. S. Gosset ("Student"), The probable error of a mean,
Biometrika 6, 1908.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Difference", "Spread", "student_95"]


class Spread(NamedTuple):
    """A figure over runs that differ in the seed: `deviation` is the sample standard deviation, None where there is one run."""

    runs: int
    mean: float
    deviation: float | None
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(len(values), statistics.fmean(values), deviation, min(values), max(values))


class Difference(NamedTuple):
    """A mean less another one. The rest is None where it cannot be said: of one run there is no deviation, and without any there is no freedom."""

    mean: float
    standard_error: float | None
    degrees_of_freedom: float | None

    @classmethod
    def of(cls, one: Spread, other: Spread) -> Difference:
        """What Welch's test has of two spreads, whose deviations need not be equal."""
        mean = one.mean - other.mean
        if one.deviation is None or other.deviation is None:
            return cls(mean, None, None)
        parts = [(spread.deviation or 0.0) ** 2 / spread.runs for spread in (one, other)]  # the variance of each mean
        rest = sum(part**2 / (spread.runs - 1) for part, spread in zip(parts, (one, other), strict=True))
        return cls(mean, math.sqrt(sum(parts)), sum(parts) ** 2 / rest if rest else None)

    @property
    def by_chance(self) -> float | None:
        """What one study in 20 finds more than, either way, of networks that are equally good."""
        if self.standard_error is None or self.degrees_of_freedom is None:
            return None
        return self.standard_error * student_95(self.degrees_of_freedom)


def student_95(freedom: float) -> float:
    """The t for which 95 % of Student's distribution lie within -t and t.

    The density is proportional to (1 + t^2 / n)^(-(n + 1) / 2) at n degrees of freedom, which are at least 1 and need not be a whole number. With
    t = sqrt(n) tan(a) this is cos(a)^(n - 1) da, with a from 0 to a right angle: this is summed, and where the sum has come to 95 % is looked up.
    """
    edges = np.linspace(0.0, math.pi / 2, 100_001)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = np.cumsum(np.cos(middles) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(0.95, shares / shares[-1], edges[1:]))
