"""Families: each sums to one, samples what it says, and says what the Gaussian says that it stands for."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from toy import CELLS, codes, training_cells

from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.families import LIKELIHOODS, is_discrete
from vaeimpute.training.runtime import make_generator

F64 = torch.float64
FLOOR = -3.5


CLASSES = ("categorical", "ordinal")


@pytest.fixture
def g():
    return make_generator(0)


def group(family, dtype=F64):
    return LIKELIHOODS[family](training_cells(family)[1], FLOOR).to(dtype)


def some_params(likelihood, n_columns, g, n=1, size=0.5):
    """Parameters (n, C, P) around a Gaussian's, which is what keeps padding out."""
    mean = size * torch.randn(n, likelihood.n_features, dtype=F64, generator=g)
    start = likelihood.from_gaussian(mean, size * torch.randn(likelihood.n_features, dtype=F64, generator=g))
    return start + size * torch.randn(n, n_columns, likelihood.n_params, dtype=F64, generator=g)


def rows(family, n=50):
    """Training cells side by side, (n, C)."""
    return torch.stack([x[:n] for x in training_cells(family)[0]], -1)


families = pytest.mark.parametrize("family", LIKELIHOODS)


def test_every_family_has_its_columns():
    assert CELLS.keys() == LIKELIHOODS.keys()


def support(family, spec):
    """Points of the column's support and the length that each stands for."""
    if family in CLASSES:
        points = torch.arange(len(spec.points), dtype=F64)
        return points, torch.ones_like(points)
    if family == "discrete":
        points = torch.tensor(spec.points, dtype=F64)
        return points, torch.ones_like(points)
    edges = torch.cat([torch.linspace(-12, 12, 20_001, dtype=F64), torch.tensor(spec.edges, dtype=F64)]).unique()
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


@families
def test_probabilities_sum_to_one(family, g):
    likelihood, (_, specs) = group(family), training_cells(family)
    params = some_params(likelihood, len(specs), g)
    for column, spec in enumerate(specs):
        points, lengths = support(family, spec)
        values = torch.zeros(len(points), len(specs), dtype=F64)
        values[:, column] = points
        density = likelihood(params.expand(len(points), -1, -1)).log_prob(values)[:, column].exp()
        assert (density * lengths).sum().item() == pytest.approx(1.0, abs=1e-4)


@families
def test_expectations_are_the_mean_of_the_samples(family, g):
    likelihood = group(family)
    n_columns = len(CELLS[family])
    params = some_params(likelihood, n_columns, g)[0]
    samples = likelihood.sample(params.expand(20_000, -1, -1), g)
    targets = likelihood.targets(samples)
    error = targets.mean(0) - likelihood.expectations(params)
    assert (error.abs() < 5 * targets.std(0) / 20_000**0.5 + 5 / 20_000).all()
    assert likelihood(params.expand(20_000, -1, -1)).log_prob(samples).isfinite().all()


@pytest.mark.parametrize("family", [family for family in LIKELIHOODS if LIKELIHOODS[family].is_numeric])
def test_the_cdf_is_the_share_of_samples_below(family, g):
    likelihood = group(family)
    params = some_params(likelihood, len(CELLS[family]), g)[0]
    distribution, samples = likelihood(params), likelihood.sample(params.expand(20_000, -1, -1), g)
    for value in samples[:30]:  # values that occur, so that a step counts in full
        share = (samples <= value + 1e-9).double().mean(0)
        torch.testing.assert_close(distribution.cdf(value + 1e-9), share, atol=5 * 0.5 / 20_000**0.5, rtol=0)


@families
def test_samples_lie_in_the_support(family, g):
    likelihood, (_, specs) = group(family), training_cells(family)
    vague = likelihood.from_gaussian(*torch.zeros(2, 1, likelihood.n_features, dtype=F64))
    samples = likelihood.sample(vague.expand(5000, -1, -1), g)
    for column, spec in enumerate(specs):
        drawn = samples[:, column].unique()
        if family in (*CLASSES, "discrete"):
            assert torch.isin(drawn, support(family, spec)[0]).all()


@families
def test_point_estimates_invert_targets(family):
    likelihood, x = group(family), rows(family)
    targets = likelihood.targets(x)
    assert targets.shape == (len(x), likelihood.n_expectations)
    torch.testing.assert_close(likelihood.point_estimates(targets), x)


@families
def test_features_say_what_the_cell_is(family):
    likelihood, x = group(family), rows(family)
    features = likelihood.features(x)
    columns = likelihood.feature_columns()
    assert features.shape[-1] == likelihood.n_features == len(columns) == len(likelihood.noise_floor())
    assert features.isfinite().all()
    for column in range(x.shape[1]):
        own = features[:, columns == column]
        same = (own.unsqueeze(0) == own.unsqueeze(1)).all(-1)
        assert (same == (x[:, column].unsqueeze(0) == x[:, column].unsqueeze(1))).all()


@families
@pytest.mark.parametrize("log_scale", [-3.4, -1.0])
def test_parameters_say_what_the_gaussian_says(family, log_scale):
    """A confident prediction of a cell's features expects the cell; of numbers that are binned, at least near it."""
    likelihood, x = group(family), rows(family)
    features = likelihood.features(x)
    params = likelihood.from_gaussian(features, torch.tensor(log_scale, dtype=F64).expand(likelihood.n_features))
    assert params.shape == (*x.shape, likelihood.n_params)
    expected = likelihood.expectations(params)
    if family == "gaussian":
        torch.testing.assert_close(expected, x)
        torch.testing.assert_close(likelihood(params).stddev, torch.full_like(x, math.exp(log_scale)))
    elif family in CLASSES:
        if family == "ordinal" and log_scale > -2:
            return  # a vague prediction of a rare class may well expect its neighbour
        torch.testing.assert_close(likelihood.point_estimates(expected), x)
    else:
        grid = likelihood.grid
        width = torch.stack([row.unique().diff().max() if len(row.unique()) > 1 else row[0] * 0 for row in grid])
        assert ((expected - x).abs() <= width + math.exp(log_scale)).all()


@families
def test_expectations_of_a_gaussian_are_its_mean_where_a_column_can_have_it(family, g):
    """Of classes the probabilities that its parameters have; of few values no less than the least, no more than most.

    (Not the mean of these classes: a wide Gaussian would put weight on rare values far away.)
    """
    likelihood = group(family)
    mean = 3 * torch.randn(50, likelihood.n_features, dtype=F64, generator=g)
    log_scale = torch.randn(50, likelihood.n_features, dtype=F64, generator=g)
    ours = likelihood.gaussian_expectations(mean, log_scale)
    if family in CLASSES:
        expected = likelihood.expectations(likelihood.from_gaussian(mean, log_scale))
    elif family == "discrete":
        points = [torch.tensor(spec.points, dtype=F64) for spec in training_cells(family)[1]]
        low, high = (torch.stack([end(p) for p in points]) for end in (torch.min, torch.max))
        expected = mean.clamp(low, high)
        assert (expected != mean).any()
    else:
        expected = mean
    torch.testing.assert_close(ours, expected)


def test_discrete_numbers_reproduce_a_gaussian_that_they_resolve():
    x = torch.linspace(-2, 2, 17, dtype=F64).repeat(20)
    likelihood = LIKELIHOODS["discrete"]([LIKELIHOODS["discrete"].fit(x, 0)], FLOOR).double()
    mean = torch.linspace(-0.5, 0.5, 11, dtype=F64).unsqueeze(-1)
    params = likelihood.from_gaussian(mean, torch.tensor(0.3, dtype=F64).log())
    torch.testing.assert_close(likelihood.expectations(params), mean, rtol=0, atol=1e-3)


@pytest.mark.parametrize("n_categories", [2, 3, 5, 12])
def test_expected_indicators_are_read_as_probabilities(n_categories, g):
    spec = LIKELIHOODS["categorical"].fit(codes(n_categories, g), n_categories)
    likelihood = LIKELIHOODS["categorical"]([spec], FLOOR).double()
    p = torch.empty(100, n_categories, dtype=F64).exponential_(generator=g)
    p /= p.sum(1, keepdim=True)  # uniform on the simplex
    one_hot = likelihood.features(torch.arange(n_categories, dtype=F64).unsqueeze(-1))  # (L, F)
    expected = likelihood.expectations(likelihood.from_gaussian(p @ one_hot, torch.zeros(n_categories, dtype=F64)))
    assert (expected - p).abs().max() < 0.035 * math.sqrt(n_categories) + 0.03  # the softplus keeps away from zero
    frequency = likelihood.expectations(
        likelihood.from_gaussian(torch.zeros(1, n_categories, dtype=F64), torch.zeros(n_categories))
    )
    torch.testing.assert_close(frequency[0], torch.tensor(spec.points, dtype=F64), rtol=0, atol=0.06)


@pytest.mark.parametrize("p", [(0.5, 0.5), (0.9, 0.1), (0.1, 0.2, 0.3, 0.4), (0.6, 0.0, 0.4), (0.02,) * 49 + (0.02,)])
def test_ordinal_reproduces_the_frequencies(p):
    counts = (torch.tensor(p, dtype=F64) * 20_000).round().long()
    spec = LIKELIHOODS["ordinal"].fit(torch.repeat_interleave(torch.arange(len(p)), counts).double(), len(p))
    likelihood = LIKELIHOODS["ordinal"]([spec], FLOOR).double()
    expected = counts.double() / counts.sum()
    # Where standardising put the logistic: exactly. At the base's marginal N(0, 1): nearly.
    scores = torch.tensor(spec.points, dtype=F64)
    assert (expected * scores).sum().abs() < 1e-2
    assert ((expected * scores.square()).sum() - 1).abs() < 1e-2
    marginal = likelihood.expectations(
        likelihood.from_gaussian(torch.zeros(1, 1, dtype=F64), torch.zeros(1, dtype=F64))
    )[0]
    assert (marginal - expected).abs().max() < 0.12
    cuts = torch.tensor(spec.edges, dtype=F64)
    slope = torch.logit(expected.cumsum(0)[:-1].clamp(1e-5, 1 - 1e-5)).diff() / cuts.diff()
    if len(slope) and min(p) > 0:
        torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=0.02, atol=0)


@families
def test_gradients_are_finite_and_reach_every_parameter(family, g):
    likelihood, (_, specs) = group(family), training_cells(family)
    params = some_params(likelihood, len(specs), g, 200)
    samples = likelihood.sample(params, g)
    params.requires_grad_()
    likelihood(params).log_prob(samples).sum().backward()
    assert params.grad.isfinite().all()
    reached = params.grad.abs().amax(0) > 0  # (C, P)
    for column, spec in enumerate(specs):
        n_free = len(spec.points) if len(spec.points) > 1 else 0  # logits of the values
        own = {"gaussian": 2, "ordinal": 2}.get(family, n_free)
        assert reached[column, :own].all()
    mean = torch.randn(200, likelihood.n_features, dtype=F64, generator=g).requires_grad_()
    likelihood(likelihood.from_gaussian(mean, torch.zeros(likelihood.n_features, dtype=F64))).log_prob(
        samples
    ).sum().backward()
    assert mean.grad.isfinite().all()


@families
@pytest.mark.parametrize("size", [1.0, 20.0, 1e6])
def test_extreme_values_stay_finite(family, size, g):
    likelihood, n_columns = group(family, torch.float32), len(CELLS[family])
    x = rows(family).float() if family in CLASSES else size * torch.randn(50, n_columns, generator=g)
    mean = (size * torch.randn(50, likelihood.n_features, generator=g)).requires_grad_()
    log_scale = (min(size, 10.0) * torch.randn(likelihood.n_features, generator=g)).requires_grad_()
    correction = (min(size, 10.0) * torch.randn(50, n_columns, likelihood.n_params, generator=g)).requires_grad_()
    params = likelihood.from_gaussian(mean, log_scale) + correction
    log_prob = likelihood(params).log_prob(x)
    log_prob.sum().backward()
    drawn = likelihood.sample(params.detach(), g)
    for tensor in (log_prob, likelihood.expectations(params), drawn, likelihood.features(x)):
        assert tensor.isfinite().all()
    for leaf in (mean, log_scale, correction):
        assert leaf.grad is None or leaf.grad.isfinite().all()


@families
def test_specifications_are_plain_numbers(family):
    for spec in training_cells(family)[1]:
        fields = asdict(spec)
        assert CellSpec.from_json(json.loads(json.dumps(fields))) == spec
        assert all(type(number) is float for number in (*fields["points"], *fields["edges"]))


@families
@pytest.mark.parametrize("x", [[], [0.5], [0.5] * 30], ids=["nothing", "one", "constant"])
def test_poor_columns_have_a_likelihood(family, x, g):
    cells = torch.tensor(x, dtype=F64)
    if family in CLASSES:
        cells = cells.floor()
    columns = ColumnLikelihoods([LIKELIHOODS[family].fit(cells, 1 if family in CLASSES else 0)], FLOOR).double()
    values = torch.zeros(3, 1, dtype=F64)
    mean = columns.features(values)
    params = columns.from_gaussian(mean, torch.zeros(columns.n_features, dtype=F64))
    assert columns.log_prob(params, values).isfinite().all()
    assert columns.expectations(params).isfinite().all()
    assert columns.sample(params, g).isfinite().all()


# ---- numbers with a structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.arange(32).repeat(5), True),
        (torch.arange(33).repeat(9), False),
        (torch.arange(32).repeat(4), False),
        (torch.zeros(100), False),
        (torch.zeros(0), False),
        (torch.arange(2).repeat(5), True),
    ],
)
def test_few_values_are_discrete(x, expected):
    assert is_discrete(x) is expected
