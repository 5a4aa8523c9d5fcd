"""Corrections: ridge regressions by hand, nothing where nothing is gained, and no answer that its own half taught."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import F64, RandomTensors

from vaeimpute.tables.corrections import Correction, Indicators, RandomFeatures, _ridge, regress_on_features, stack
from vaeimpute.tables.queries import Queries

Q, F, INPUTS = 400, 3, 4


@pytest.fixture
def random():
    return RandomTensors()


def queries_of(random, n=Q, n_features=F, rate=0.5):
    """Half of the cells are held out, in rows of all folds; what they hold does not matter here."""
    held_out = random.mask(n, n_features, rate=rate).double()
    zero = torch.zeros(n, n_features, dtype=F64)
    return Queries(zero, 1 - held_out, zero, held_out, torch.arange(n), (torch.arange(n) * 4) // n)


def halves(random, noise=0.1, n=(80, 60), n_targets=2):
    coef = random.normal(INPUTS, n_targets)
    parts = []
    for m in n:
        a = random.normal(m, INPUTS)
        parts.append((a, a @ coef + noise * random.normal(m, n_targets)))
    return parts


# ---- ridge regression --------------------------------------------------------------------------------------------


def by_hand(a, y, penalty):
    a, y = a.numpy(), y.numpy()
    return np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ y)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 3.0])
def test_ridge_is_numpys(random, penalty):
    """A half's answers come from the other's coefficients; the penalty counts in mean squares of half of the rows."""
    parts = halves(random)
    solved = _ridge(parts, [penalty], 0.003, 2)
    unit = sum((a**2).sum(0).mean().item() for a, _ in parts) / 2
    for (a, _), other, answer in zip(parts, parts[::-1], solved.answers, strict=True):
        np.testing.assert_allclose(answer.numpy(), a.numpy() @ by_hand(*other, penalty * unit))
    both = (torch.cat(part) for part in zip(*parts, strict=True))
    np.testing.assert_allclose(solved.coef.numpy(), by_hand(*both, 2 * penalty * unit))


def test_the_penalty_is_the_one_that_answers_the_other_half_best(random):
    penalties = [1e-3, 1e-1, 10.0]
    for noise in (0.1, 3.0):
        parts = halves(random, noise=noise, n=(25, 25))
        each = [_ridge(parts, [penalty], -10, 0) for penalty in penalties]
        errors = [
            sum((y - a).square().sum() for (_, y), a in zip(parts, solved.answers, strict=True)) for solved in each
        ]
        best = each[int(torch.stack(errors).argmin())]
        torch.testing.assert_close(_ridge(parts, penalties, -10, 0).coef, best.coef)


def test_next_to_nothing_is_learnt_from_noise():
    """The excess error is the squared length of the coefficients."""
    random = RandomTensors()
    tries = [_ridge(noise_only(random), [1e-2, 1.0], 0.003, 2) for _ in range(40)]
    learnt = [solved.coef.square().sum().item() for solved in tries if solved is not None]
    assert len(learnt) < 0.2 * len(tries)
    assert sum(learnt) < 0.005 * len(tries)


def noise_only(random):
    return [(random.normal(400, INPUTS), random.normal(400, 1)) for _ in range(2)]


def test_a_gain_must_be_as_large_as_is_asked(random):
    parts = halves(random, noise=0.5)
    answers = _ridge(parts, [1e-3], 0.0, 0).answers
    left = sum((y - a).square().sum() for (_, y), a in zip(parts, answers, strict=True))
    gain = 1 - (left / sum(y.square().sum() for _, y in parts)).item()
    assert 0.3 < gain < 1
    assert _ridge(parts, [1e-3], gain - 1e-6, 0) is not None
    assert _ridge(parts, [1e-3], gain + 1e-6, 0) is None
    n_cells = sum(len(y) for _, y in parts)
    assert _ridge(parts, [1e-3], gain - 1e-6, 1e-4 * n_cells) is None  # few cells prove little


def test_inputs_of_zero_do_no_harm(random):
    parts = [(torch.cat([a, torch.zeros_like(a)], 1), y) for a, y in halves(random)]
    solved = _ridge(parts, [1e-3, 1.0], 0.003, 2)
    assert solved.coef.isfinite().all()
    assert (solved.coef[INPUTS:].abs() < 1e-9).all()
    silent = [(torch.zeros_like(a), y) for a, y in parts]
    assert _ridge(silent, [1e-3, 1.0], 0.003, 2) is None


# ---- what it is used for -----------------------------------------------------------------------------------------


def regressed(queries, residual, inputs, columns):
    """Of columns that are all numbers."""
    numbers = Indicators(columns, torch.full((2, len(columns)), torch.nan))
    return regress_on_features(queries, queries.truth - residual, inputs, torch.ones_like(residual), columns, numbers)


def on_stack(queries, residual, inputs):
    return stack(queries, residual, inputs)


def on_features(queries, residual, inputs):
    """The inputs of the first feature, for all."""
    return regressed(queries, residual, inputs[:, 0], torch.arange(residual.shape[1]))


BOTH = pytest.mark.parametrize("regress", [on_stack, on_features])


@BOTH
def test_what_inputs_explain_is_added(random, regress):
    """Where it is held out; and coefficients for new rows say the same."""
    queries, shared = queries_of(random, 4000), random.normal(4000, 1, INPUTS)
    inputs, truth = shared.expand(-1, F, -1), random.normal(F, INPUTS)
    residual = (inputs * truth).sum(-1) + 0.3 * random.normal(4000, F)
    correction, added = regress(queries, residual, inputs)
    torch.testing.assert_close(correction.coef, truth, rtol=0, atol=0.05)
    held_out = queries.held_out > 0
    assert (residual - added)[held_out].square().mean().item() == pytest.approx(0.09, rel=0.1)
    assert not added[~held_out].any()
    torch.testing.assert_close(correction.most, added.abs().amax(0))


@BOTH
def test_where_nothing_is_gained_nothing_is_added(random, regress):
    """A column by itself: another one's gain is no reason."""
    queries, inputs = queries_of(random), random.normal(Q, 1, INPUTS).expand(-1, F, -1)
    residual = random.normal(Q, F)
    residual[:, 1] += 3 * inputs[:, 1, 0]
    correction, added = regress(queries, residual, inputs)
    for j in (0, 2):
        assert not correction.coef[j].any()
        assert correction.most[j] == 0
        assert not added[:, j].any()
    assert correction.coef[1].any()


@BOTH
def test_a_half_has_no_say_in_its_own_answers(random, regress):
    queries, inputs = queries_of(random), random.normal(Q, 1, INPUTS).expand(-1, F, -1)
    residual = 2 * inputs[..., 0] + 0.1 * random.normal(Q, F)
    own = queries.fold % 2 == 0
    other = residual + 0.1 * own.unsqueeze(1) * random.normal(Q, F)
    (_, before), (_, after) = (regress(queries, each, inputs) for each in (residual, other))
    torch.testing.assert_close(before[own], after[own], rtol=1e-2, atol=1e-2)
    assert torch.equal(before[own], after[own])  # of the same penalty, which is all that both halves settle
    assert not torch.equal(before[~own], after[~own])


@BOTH
def test_few_cells_have_no_say(random, regress):
    queries, inputs = queries_of(random, 60, rate=0.2), random.normal(60, 1, INPUTS).expand(-1, F, -1)
    correction, added = regress(queries, 5 * inputs[..., 0], inputs)
    assert not correction.coef.any()
    assert not added.any()


@BOTH
def test_a_cell_that_is_not_asked_for_has_no_say(random, regress):
    queries, inputs = queries_of(random), random.normal(Q, 1, INPUTS).expand(-1, F, -1)
    residual = 2 * inputs[..., 0]
    other = torch.where(queries.held_out > 0, residual, 100.0)
    for one, same in zip(regress(queries, residual, inputs)[0], regress(queries, other, inputs)[0], strict=True):
        assert torch.equal(one, same)


def test_corrections_are_bounded(random):
    correction = Correction(torch.zeros(2, 1), torch.tensor([0.5, 0.0]))
    cells = torch.tensor([[0.2, 0.2], [0.7, 1e6], [-1e6, -1.0]])
    assert correction.bounded(cells).tolist() == [[pytest.approx(0.2), 0.0], [0.5, 0.0], [-0.5, 0.0]]


# ---- random features ---------------------------------------------------------------------------------------------


def drawn(random, filled, visible=None, n_random=40):
    visible = torch.ones_like(filled) if visible is None else visible
    return RandomFeatures.drawn(filled, visible, n_random, random.generator)


@pytest.mark.parametrize("n_features", [1, 3, 100, 101])
def test_there_are_as_many_inputs_as_is_told(random, n_features):
    filled = random.normal(50, n_features)
    features = drawn(random, filled)
    inputs = features(filled, torch.ones_like(filled))
    assert inputs.shape == (50, RandomFeatures.n_inputs(n_features, 40))
    assert inputs.isfinite().all()


def test_inputs_are_standardised_and_the_first_is_one(random):
    filled, visible = random.normal(2000, F), random.mask(2000, F, rate=0.7).double()
    inputs = drawn(random, filled, visible)(filled, visible)
    assert (inputs[:, 0] == 1).all()
    assert (inputs[:, 1:].mean(0).abs() < 0.1).all()  # what lies far out is cut off
    inside = inputs[:, 1:].std(0)
    assert (inside < 1.01).all()
    assert (inside > 0.7).sum() > 0.7 * len(inside)  # a knot where few rows are says little


def test_directions_are_short_and_of_length_one(random):
    features = drawn(random, random.normal(200, 8), n_random=300)
    n_cells = (features.directions != 0).sum(0)
    assert set(n_cells.tolist()) == {1, 2, 3}
    torch.testing.assert_close(features.directions.norm(dim=0), torch.ones(300, dtype=F64))


@pytest.mark.parametrize("size", [1.0, 20.0, 1e6, 1e300])
def test_inputs_are_bounded_for_any_row(random, size):
    filled = random.normal(100, F)
    features = drawn(random, filled)
    inputs = features(size * random.normal(50, F), torch.ones(50, F, dtype=F64))
    assert inputs.isfinite().all()
    assert inputs.abs().max() <= 5


def test_far_out_they_stand_still(random):
    """No row is extrapolated to: beyond three standard deviations a cell is as good as at three."""
    filled, ones = random.normal(100, F), torch.ones(4, F, dtype=F64)
    features = drawn(random, filled)
    inputs = features(torch.tensor([[3.0], [1e3], [1e6], [1e9]], dtype=F64).expand(4, F), ones)
    assert torch.equal(inputs, inputs[:1].expand_as(inputs))


def test_a_constant_column_does_no_harm(random):
    filled = random.normal(100, F)
    filled[:, 1] = 1.0
    features = drawn(random, filled)
    inputs = features(filled, torch.ones_like(filled))
    assert inputs.isfinite().all()
    assert (features.scale > 0).all()
    other = filled.clone()
    other[0, 1] += 1e-4  # a little beside it is no other world
    assert (features(other, torch.ones_like(filled)) - inputs).abs().max() < 0.05


@pytest.mark.parametrize("curve", [torch.abs, lambda x: x.square() - 1, torch.sign], ids=["abs", "square", "sign"])
def test_what_is_not_linear_is_found(random, curve):
    """Of a residual that is a curve of one cell; and a product of two, which no single cell shows."""
    n = 3000
    filled, ones = random.normal(n, F), torch.ones(n, F, dtype=F64)
    queries = queries_of(random, n)
    residual = torch.stack([curve(filled[:, 1]), filled[:, 0] * filled[:, 2], random.normal(n)], 1)
    residual -= residual.mean(0)
    inputs = drawn(random, filled, n_random=128)(filled, ones)
    _, added = regressed(queries, residual, inputs, torch.arange(F))
    left = queries.held_out * (residual - added)
    ratio = left.square().sum(0) / (queries.held_out * residual).square().sum(0)
    assert ratio[0] < 0.35
    assert ratio[1] < 0.6
    assert ratio[2] == 1


def test_random_features_come_from_the_generator_alone():
    filled = RandomTensors(3).normal(100, F)
    state = torch.get_rng_state()
    one, same, other = (drawn(RandomTensors(seed), filled) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.directions, other.directions)
    assert torch.equal(state, torch.get_rng_state())


# ---- classes -----------------------------------------------------------------------------------------------------


def class_indicators():
    """A number, and a class of three levels whose features say 0 and 1 as they are."""
    low_high = torch.tensor([[torch.nan, 0, 0, 0], [torch.nan, 1, 1, 1]], dtype=F64)
    return Indicators(torch.tensor([0, 1, 1, 1]), low_high)


def test_classes_are_moved_by_log_odds_and_numbers_by_what_is_added(random):
    indicators = class_indicators()
    mean = torch.cat([random.normal(50, 1), torch.softmax(random.normal(50, 3), 1)], 1)
    added = random.normal(50, 4)
    moved = indicators.moved(mean, added)
    torch.testing.assert_close(moved[:, 0], mean[:, 0] + added[:, 0])
    torch.testing.assert_close(moved[:, 1:], torch.softmax(mean[:, 1:].log() + added[:, 1:], 1))
    torch.testing.assert_close(indicators.moved(mean, torch.zeros_like(added)), mean)


def test_log_odds_of_a_logistic_model_are_found(random):
    """Classes drawn from a multinomial logistic model, beside equal probabilities."""
    n, truth = 6000, torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]], dtype=F64)
    inputs = random.normal(n, 2)
    labels = torch.multinomial(torch.softmax(inputs @ truth, 1), 1, generator=random.generator).squeeze(1)
    one_hot = torch.nn.functional.one_hot(labels, 3).to(F64)
    ones = torch.ones(n, 4, dtype=F64)
    fold = torch.arange(n) % 4
    order = fold.argsort(stable=True)
    truths = torch.cat([random.normal(n, 1), one_hot], 1)
    queries = Queries(0 * ones, 0 * ones, truths, ones, torch.arange(n), fold).at(order)
    answers = torch.cat([0 * ones[:, :1], ones[:, 1:] / 3], 1)
    indicators = class_indicators()
    correction, added = regress_on_features(queries, answers, inputs[order], ones, indicators_columns(), indicators)
    found = correction.coef[1:].T
    torch.testing.assert_close(
        found - found.mean(1, keepdim=True), truth - truth.mean(1, keepdim=True), rtol=0, atol=0.15
    )
    probability = indicators.moved(answers, added)[:, 1:]
    assert (probability * queries.truth[:, 1:]).sum(1).log().mean() > -0.9  # of equal probabilities -1.1
    torch.testing.assert_close(probability.sum(1), torch.ones(n, dtype=F64))


def indicators_columns():
    return torch.tensor([0, 1, 1, 1])
