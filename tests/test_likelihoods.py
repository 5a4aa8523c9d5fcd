"""likelihoods: every family sums to one, samples what it says, answers what a Gaussian says; groups change nothing."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.distributions import draw_index
from vaeimpute.likelihoods.families import LIKELIHOODS, CellSpec, is_discrete

F64 = torch.float64
FLOOR = -3.5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def classes(n_levels, n=400):
    """Codes with unequal frequencies; some levels may not occur."""
    return torch.multinomial(torch.arange(1.0, n_levels + 1), n, replacement=True).double()


def zero_inflated(n=400):
    x = torch.randn(n, dtype=F64).abs()
    return torch.where(torch.rand(n) < 0.4, 0.0, x)


# family -> training cells and number of levels of columns of different width; a new family gets its row here
COLUMNS = {
    "gaussian": [(lambda: torch.randn(100, dtype=F64), 0), (lambda: torch.zeros(100, dtype=F64), 0)],
    "levels": [(lambda n=n: (classes(n) - n / 2) / n, 0) for n in (2, 5, 7, 32)],
    "histogram": [
        (lambda: torch.randn(400, dtype=F64), 0),
        (lambda: torch.randn(60, dtype=F64).exp(), 0),
        (zero_inflated, 0),
        (lambda: torch.zeros(100, dtype=F64), 0),
    ],
    "categorical": [(lambda n=n: classes(n), n) for n in (2, 3, 4, 7, 30)],
    "ordinal": [(lambda n=n: classes(n), n) for n in (2, 3, 4, 7, 30)],
}
CLASSES = ("categorical", "ordinal")


def training_cells(family):
    """Training cells of the family's columns, and their specifications."""
    torch.manual_seed(0)
    cells = [make() for make, _ in COLUMNS[family]]
    specs = [LIKELIHOODS[family].fit(x, levels) for x, (_, levels) in zip(cells, COLUMNS[family], strict=True)]
    return cells, specs


def group(family, dtype=F64):
    return LIKELIHOODS[family](training_cells(family)[1], FLOOR).to(dtype)


def some_params(likelihood, n_columns, n=1, size=0.5):
    """Parameters (n, C, P) around a base, which is what keeps padding out."""
    mean = size * torch.randn(n, likelihood.n_features, dtype=F64)
    base = likelihood.base(mean, size * torch.randn(likelihood.n_features, dtype=F64))
    return base + size * torch.randn(n, n_columns, likelihood.n_params, dtype=F64)


def rows(family, n=50):
    """Training cells side by side, (n, C)."""
    return torch.stack([x[:n] for x in training_cells(family)[0]], -1)


families = pytest.mark.parametrize("family", LIKELIHOODS)


def test_every_family_has_its_columns():
    assert COLUMNS.keys() == LIKELIHOODS.keys()


def support(family, spec):
    """Points of the column's support and the length that each stands for."""
    if family in CLASSES:
        points = torch.arange(len(spec.points), dtype=F64)
        return points, torch.ones_like(points)
    if family == "levels":
        points = torch.tensor(spec.points, dtype=F64)
        return points, torch.ones_like(points)
    edges = torch.cat([torch.linspace(-12, 12, 20_001, dtype=F64), torch.tensor(spec.edges, dtype=F64)]).unique()
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


@families
def test_probabilities_sum_to_one(family):
    likelihood, (_, specs) = group(family), training_cells(family)
    params = some_params(likelihood, len(specs))
    for column, spec in enumerate(specs):
        points, lengths = support(family, spec)
        values = torch.zeros(len(points), len(specs), dtype=F64)
        values[:, column] = points
        density = likelihood(params.expand(len(points), -1, -1)).log_prob(values)[:, column].exp()
        assert (density * lengths).sum().item() == pytest.approx(1.0, abs=1e-4)


@families
def test_answers_are_the_mean_of_the_samples(family):
    likelihood = group(family)
    n_columns = len(COLUMNS[family])
    params = some_params(likelihood, n_columns)[0]
    samples = likelihood(params.expand(20_000, -1, -1)).sample().double()
    targets = likelihood.targets(samples)
    error = targets.mean(0) - likelihood.answers(params)
    assert (error.abs() < 5 * targets.std(0) / 20_000**0.5 + 5 / 20_000).all()
    assert likelihood(params.expand(20_000, -1, -1)).log_prob(samples).isfinite().all()


@pytest.mark.parametrize("family", [family for family in LIKELIHOODS if LIKELIHOODS[family].measured])
def test_the_cdf_is_the_share_of_samples_below(family):
    likelihood = group(family)
    distribution = likelihood(some_params(likelihood, len(COLUMNS[family]))[0].expand(20_000, -1, -1))
    samples = distribution.sample().double()
    for value in samples[:30]:  # values that occur, so that a step counts in full
        share = (samples <= value + 1e-9).double().mean(0)
        torch.testing.assert_close(distribution.cdf(value + 1e-9)[0], share, atol=5 * 0.5 / 20_000**0.5, rtol=0)


@families
def test_samples_lie_in_the_support(family):
    likelihood, (_, specs) = group(family), training_cells(family)
    vague = likelihood.base(*torch.zeros(2, 1, likelihood.n_features, dtype=F64))
    samples = likelihood(vague.expand(5000, -1, -1)).sample()
    for column, spec in enumerate(specs):
        drawn = samples[:, column].unique()
        if family in (*CLASSES, "levels"):
            assert torch.isin(drawn, support(family, spec)[0]).all()


@families
def test_points_invert_targets(family):
    likelihood, x = group(family), rows(family)
    targets = likelihood.targets(x)
    assert targets.shape == (len(x), likelihood.n_answers)
    torch.testing.assert_close(likelihood.points(targets), x)


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
def test_base_says_what_the_gaussian_says(family, log_scale):
    """A confident prediction of a cell's features is answered by the cell; answers are averages at least near it."""
    likelihood, x = group(family), rows(family)
    features = likelihood.features(x)
    params = likelihood.base(features, torch.tensor(log_scale, dtype=F64).expand(likelihood.n_features))
    assert params.shape == (*x.shape, likelihood.n_params)
    answers = likelihood.answers(params)
    if family == "gaussian":
        torch.testing.assert_close(answers, x)
        torch.testing.assert_close(likelihood(params).stddev, torch.full_like(x, math.exp(log_scale)))
    elif family in CLASSES:
        if family == "ordinal" and log_scale > -2:
            return  # a vague prediction of a rare class may well be answered by its neighbour
        torch.testing.assert_close(likelihood.points(answers), x)
    else:
        grid = likelihood.grid
        width = torch.stack([row.unique().diff().max() if len(row.unique()) > 1 else row[0] * 0 for row in grid])
        assert ((answers - x).abs() <= width + math.exp(log_scale)).all()


def test_levels_reproduce_a_gaussian_that_they_resolve():
    x = torch.linspace(-2, 2, 17, dtype=F64).repeat(20)
    likelihood = LIKELIHOODS["levels"]([LIKELIHOODS["levels"].fit(x, 0)], FLOOR).double()
    mean = torch.linspace(-0.5, 0.5, 11, dtype=F64).unsqueeze(-1)
    params = likelihood.base(mean, torch.tensor(0.3, dtype=F64).log())
    torch.testing.assert_close(likelihood.answers(params), mean, rtol=0, atol=1e-3)


def test_histogram_reproduces_a_gaussian_that_it_resolves():
    x = torch.randn(20_000, dtype=F64)
    likelihood = LIKELIHOODS["histogram"]([LIKELIHOODS["histogram"].fit(x, 0)], FLOOR).double()
    mean = torch.linspace(-1, 1, 11, dtype=F64).unsqueeze(-1)
    params = likelihood.base(mean, torch.tensor(0.3, dtype=F64).log())
    torch.testing.assert_close(likelihood.answers(params), mean, rtol=0, atol=0.02)


@pytest.mark.parametrize("n_levels", [2, 3, 5, 12])
def test_categorical_base_reads_expected_indicators_as_probabilities(n_levels):
    spec = LIKELIHOODS["categorical"].fit(classes(n_levels), n_levels)
    likelihood = LIKELIHOODS["categorical"]([spec], FLOOR).double()
    p = torch.distributions.Dirichlet(torch.ones(n_levels, dtype=F64)).sample((100,))
    one_hot = likelihood.features(torch.arange(n_levels, dtype=F64).unsqueeze(-1))  # (L, F)
    answers = likelihood.answers(likelihood.base(p @ one_hot, torch.zeros(n_levels, dtype=F64)))
    assert (answers - p).abs().max() < 0.035 * math.sqrt(n_levels) + 0.03  # the softplus keeps away from zero
    frequency = likelihood.answers(likelihood.base(torch.zeros(1, n_levels, dtype=F64), torch.zeros(n_levels)))
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
    marginal = likelihood.answers(likelihood.base(torch.zeros(1, 1, dtype=F64), torch.zeros(1, dtype=F64)))[0]
    assert (marginal - expected).abs().max() < 0.12
    cuts = torch.tensor(spec.edges, dtype=F64)
    slope = torch.logit(expected.cumsum(0)[:-1].clamp(1e-5, 1 - 1e-5)).diff() / cuts.diff()
    if len(slope) and min(p) > 0:
        torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=0.02, atol=0)


@families
def test_gradients_are_finite_and_reach_every_parameter(family):
    likelihood, (_, specs) = group(family), training_cells(family)
    params = some_params(likelihood, len(specs), 200).requires_grad_()
    samples = likelihood(params).sample().double()
    assert not samples.requires_grad
    likelihood(params).log_prob(samples).sum().backward()
    assert params.grad.isfinite().all()
    reached = params.grad.abs().amax(0) > 0  # (C, P)
    for column, spec in enumerate(specs):
        n_free = len(spec.points) if len(spec.points) > 1 else 0  # logits of the levels or bins
        own = {"histogram": 3 + n_free, "gaussian": 2, "ordinal": 2}.get(family, n_free)
        assert reached[column, :own].all()
    mean = torch.randn(200, likelihood.n_features, dtype=F64, requires_grad=True)
    likelihood(likelihood.base(mean, torch.zeros(likelihood.n_features, dtype=F64))).log_prob(samples).sum().backward()
    assert mean.grad.isfinite().all()


@families
@pytest.mark.parametrize("size", [1.0, 20.0, 1e6])
def test_extreme_values_stay_finite(family, size):
    likelihood, n_columns = group(family, torch.float32), len(COLUMNS[family])
    x = rows(family).float() if family in CLASSES else size * torch.randn(50, n_columns)
    mean = (size * torch.randn(50, likelihood.n_features)).requires_grad_()
    log_scale = (min(size, 10.0) * torch.randn(likelihood.n_features)).requires_grad_()
    correction = (min(size, 10.0) * torch.randn(50, n_columns, likelihood.n_params)).requires_grad_()
    params = likelihood.base(mean, log_scale) + correction
    log_prob = likelihood(params).log_prob(x)
    log_prob.sum().backward()
    for tensor in (log_prob, likelihood.answers(params), likelihood(params).sample(), likelihood.features(x)):
        assert tensor.isfinite().all()
    for leaf in (mean, log_scale, correction):
        assert leaf.grad is None or leaf.grad.isfinite().all()


# ---- columns together -------------------------------------------------------------------------------------------


def zoo():
    """All columns of all families, and rows of their training cells."""
    specs, cells = [], []
    for family in LIKELIHOODS:
        own_cells, own_specs = training_cells(family)
        specs += own_specs
        cells += [x[:40] for x in own_cells]
    return specs, torch.stack(cells, -1)


SPECS, VALUES = zoo()


@given(st.permutations(range(len(SPECS))), st.integers(1, len(SPECS)))
@settings(max_examples=15, deadline=None)
def test_columns_do_not_depend_on_their_company(order, size):
    columns = order[:size]
    together = ColumnLikelihoods([SPECS[c] for c in columns], FLOOR).double()
    values = VALUES[:, columns]
    features = together.features(values)
    mean = 0.8 * features
    log_scale = torch.full((together.n_features,), -0.7, dtype=F64)
    params = together.base(mean, log_scale)
    log_prob, answers, points = together.log_prob(params, values), together.answers(params), together.targets(values)
    assert params.shape == (40, together.n_params)
    torch.testing.assert_close(together.points(points), values)
    filled = together.points(answers)
    for place, column in enumerate(columns):
        alone = ColumnLikelihoods([SPECS[column]], FLOOR).double()
        value = VALUES[:, [column]]
        own = together.feature_columns == place
        torch.testing.assert_close(features[:, own], alone.features(value))
        torch.testing.assert_close(together.noise_floor()[own], alone.noise_floor())
        by_itself = alone.base(mean[:, own], log_scale[own])
        torch.testing.assert_close(log_prob[:, [place]], alone.log_prob(by_itself, value))
        torch.testing.assert_close(answers[:, together.answer_columns == place], alone.answers(by_itself))
        torch.testing.assert_close(points[:, together.answer_columns == place], alone.targets(value))
        torch.testing.assert_close(filled[:, [place]], alone.points(alone.answers(by_itself)))


def test_every_parameter_belongs_to_one_column():
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    params = (0.3 * torch.randn(40, together.n_params, dtype=F64)).requires_grad_()
    log_prob = together.log_prob(params, VALUES)
    owners = torch.zeros(together.n_params)
    for column in range(len(SPECS)):
        (grad,) = torch.autograd.grad(log_prob[:, column].sum(), params, retain_graph=True)
        assert grad.isfinite().all()
        owners += grad.abs().amax(0) > 0
    assert (owners <= 1).all()


@pytest.mark.parametrize("lead", [(), (40,), (2, 3, 40)])
def test_leading_dimensions_are_free(lead):
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    values = VALUES.expand(*lead, -1) if len(lead) > 1 else VALUES[0].expand(*lead, -1)
    params = torch.zeros(*lead, together.n_params, dtype=F64)
    assert together.log_prob(params, values).shape == values.shape
    assert together.sample(params).shape == values.shape
    assert together.features(values).shape == (*lead, together.n_features)
    assert together.answers(params).shape == (*lead, together.n_answers)
    assert together.points(together.answers(params)).shape == values.shape


def test_samples_of_some_draws_and_of_some_columns():
    together = ColumnLikelihoods(SPECS, FLOOR).double()
    params = torch.randn(2, 3, 5, together.n_params, dtype=F64)  # (M, K, B, P)
    draws = torch.randint(3, (2, 8, 5))
    picked = params.take_along_dim(draws.unsqueeze(-1), 1)
    torch.manual_seed(0)
    expected = together.sample(picked)
    torch.manual_seed(0)
    assert torch.equal(together.sample(params, draws), expected)
    for column in range(len(SPECS)):
        wanted = torch.arange(len(SPECS)) == column
        some = together.sample(params, draws, wanted)
        assert some.shape == expected.shape
        assert some[..., column].isfinite().all()
        assert some[..., column].any()


def test_indices_are_drawn_as_often_as_they_should():
    logits = torch.tensor([[0.0, -1e4, 1.0, 2.0], [-1e4, -1e4, 5.0, -1e4]]).log_softmax(-1)
    index = draw_index(logits.expand(50_000, -1, -1))
    share = torch.nn.functional.one_hot(index, 4).double().mean(0)
    torch.testing.assert_close(share, logits.exp().double(), atol=0.01, rtol=0)
    assert (share[logits < -100] == 0).all()


@families
def test_specifications_are_plain_numbers(family):
    for spec in training_cells(family)[1]:
        fields = asdict(spec)
        assert CellSpec(**fields) == spec
        assert all(type(number) is float for number in (*fields["points"], *fields["edges"]))


@families
@pytest.mark.parametrize("x", [[], [0.5], [0.5] * 30], ids=["nothing", "one", "constant"])
def test_poor_columns_have_a_likelihood(family, x):
    cells = torch.tensor(x, dtype=F64)
    if family in CLASSES:
        cells = cells.floor()
    columns = ColumnLikelihoods([LIKELIHOODS[family].fit(cells, 1 if family in CLASSES else 0)], FLOOR).double()
    values = torch.zeros(3, 1, dtype=F64)
    mean = columns.features(values)
    params = columns.base(mean, torch.zeros(columns.n_features, dtype=F64))
    assert columns.log_prob(params, values).isfinite().all()
    assert columns.answers(params).isfinite().all()
    assert columns.sample(params).isfinite().all()


# ---- numbers with a structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("x", "n_atoms"),
    [
        (torch.linspace(-2, 2, 1000, dtype=F64), 0),
        (torch.cat([torch.zeros(300, dtype=F64), torch.linspace(0.5, 3, 700, dtype=F64)]), 1),
        (torch.cat([torch.zeros(300, dtype=F64), torch.rand(20_000, dtype=F64) + 1e-2]), 0),
        (torch.cat([torch.full((9000,), -0.7, dtype=F64), torch.rand(20_000, dtype=F64)]), 1),
        (torch.cat([torch.full((50,), v, dtype=F64) for v in (0.0, 1e-3, 2e-3, 1.0)]), 4),
        (torch.cat([torch.full((50,), v, dtype=F64) for v in (0.0, 0.7, 2.0)] + [torch.rand(500, dtype=F64)]), 3),
    ],
    ids=["smooth", "zeros", "few zeros", "dense numbers", "near atoms", "atoms among numbers"],
)
def test_bins_cover_the_cells_and_atoms_have_their_own(x, n_atoms, dtype):
    spec = LIKELIHOODS["histogram"].fit(x, 0)
    edges, points = torch.tensor(spec.edges, dtype=F64), torch.tensor(spec.points, dtype=F64)
    assert (edges.diff() > 0).all()
    assert edges[0] <= x.min()
    assert x.max() <= edges[-1]
    assert ((edges[:-1] <= points) & (points <= edges[1:])).all()
    levels, count = x.unique(return_counts=True)
    atoms = levels[count > 0.03 * len(x)]
    assert len(atoms) == n_atoms
    # Certain of an atom's bin, the likelihood gives the atom a density that no other cell comes near.
    likelihood = LIKELIHOODS["histogram"]([spec], FLOOR).to(dtype)
    for atom in atoms:
        nearest = (likelihood.grid[0].double() - atom).abs().argmin()
        assert likelihood.grid[0, nearest].item() == pytest.approx(atom.item(), abs=1e-4)
        params = torch.zeros(1, 1, likelihood.n_params, dtype=dtype)
        params[..., 2] = 30.0
        params[..., 3 + nearest] = 30.0
        assert likelihood(params).log_prob(atom.to(dtype).reshape(1, 1)).item() > 5
        for other in atoms[atoms != atom]:
            assert likelihood(params).log_prob(other.to(dtype).reshape(1, 1)).item() < 0


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
def test_few_values_are_levels(x, expected):
    assert is_discrete(x) is expected
