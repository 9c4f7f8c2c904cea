"""Spreads of figures and differences of means, against NumPy and against Student's density."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformer.spread import Difference, Spread, student_95


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 3, 3.7, 5, 8, 10, 11, 12.25, 20, 60, 300])
def test_student_s_t_holds_95_percent_of_its_density(freedom: float) -> None:
    """95 % of Student's distribution lie within `student_95`, by its density."""
    t, step = np.linspace(-student_95(freedom), student_95(freedom), 20_001, retstep=True)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    assert (density.sum() - (density[0] + density[-1]) / 2) * step == pytest.approx(0.95, abs=1e-6)


def test_student_s_t_of_many_is_that_of_the_normal_distribution() -> None:
    assert student_95(1e6) == pytest.approx(1.959964, abs=1e-4)


def test_one_deviation_alone_has_its_own_degrees_of_freedom() -> None:
    same, spread = Spread.of([0.5, 0.5, 0.5]), Spread.of([0.4, 0.5, 0.6, 0.7])
    assert Difference.of(spread, same) == pytest.approx((0.05, spread.deviation / 2, 3), rel=1e-12)
