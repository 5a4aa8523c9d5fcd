"""corruption: the density of wrong values is one, and new values of a list count by how rare they are."""

from __future__ import annotations

import math

import pytest
import torch

from vaeimpute.corruption import Corruption


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


def test_a_new_value_counts_by_how_rare_new_values_are():
    values = torch.arange(20.0).repeat_interleave(10) / 10  # each ten times: a list
    wrong = fitted(values)
    known, new = wrong.log_density(torch.tensor([[1.0], [1.0 + 1e-9]], dtype=torch.float64)).squeeze()
    assert new - known == pytest.approx(math.log(202), abs=1e-6)  # (0 + 1) / (200 + 2)


def test_numbers_that_do_not_repeat_are_no_list():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    wrong = fitted(values)
    known, new = density(wrong, torch.stack([values[0], values[0] + 1e-6])).tolist()
    assert known == pytest.approx(new, rel=1e-3)


def test_holes_do_not_count():
    values, observed = torch.randn(100), torch.arange(100) % 2 == 0
    one = fitted(values, observed=observed)
    two = fitted(torch.where(observed, values, 7.0), observed=observed)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
