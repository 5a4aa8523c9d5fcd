"""corruption: the density of wrong values is one."""

from __future__ import annotations

import math

import pytest
import torch

from vaeimpute.anomaly.contamination import Corruption


def fitted(values, n_levels=0, observed=None):
    values = values.double().unsqueeze(1)
    observed = torch.ones_like(values, dtype=torch.bool) if observed is None else observed.unsqueeze(1)
    return Corruption.fit(values, observed, [n_levels])


def density(wrong, points):
    return wrong.log_density(points.double().unsqueeze(1)).squeeze(1).exp()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_numbers_integrate_to_one(scale):
    wrong = fitted(scale * torch.randn(500, generator=torch.Generator().manual_seed(0)))
    angles = torch.linspace(-math.pi / 2, math.pi / 2, 200_002, dtype=torch.float64)[1:-1]  # the line, by its tangent
    width = angles[1] - angles[0]
    mass = (density(wrong, angles.tan()) / angles.cos().square()).sum() * width
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_classes_sum_to_one_and_rare_ones_are_no_rarer_than_half_of_an_even_share():
    wrong = fitted(torch.tensor([0.0] * 98 + [1.0, 2.0]), n_levels=5)
    p = density(wrong, torch.arange(5))
    assert p.sum() == pytest.approx(1)
    assert p.tolist() == pytest.approx([0.59, 0.105, 0.105, 0.1, 0.1])


def test_holes_do_not_count():
    values, observed = torch.randn(100), torch.arange(100) % 2 == 0
    one = fitted(values, observed=observed)
    two = fitted(torch.where(observed, values, 7.0), observed=observed)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
