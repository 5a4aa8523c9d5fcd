"""Inference: what holds of every fitted ensemble, whatever the networks inside."""

from __future__ import annotations

import math

import pytest
import torch
from toy import F64, N_CATEGORIES, RandomTensors, mixed

from vaeimpute.batching import BUDGET
from vaeimpute.tables.fit import fit_ensemble
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae.inference import (
    cell_log_likelihood,
    decode,
    draw,
    encode,
    expectations,
    impute,
    latent_noise,
    log_likelihood,
    medians,
    sample,
)

POINTS = (impute, log_likelihood, cell_log_likelihood, encode)


@pytest.fixture(scope="module")
def table():
    return mixed()


@pytest.fixture(scope="module", params=["auto", "full"])
def ensemble(table, request):
    """Without networks, and with them."""
    return fit_ensemble(table, seed=0, dtype=F64, budget=TimeBudget(), max_iter=60, effort=request.param)[0]


def drawn(ensemble, table, n_draws, seed=0):
    return draw(ensemble, table.values, table.observed, n_draws, make_generator(seed))


def assert_cells_are_possible(cells, table):
    """Observed cells are the user's own, classes are codes, and nothing is infinite."""
    assert cells.isfinite().all()
    assert torch.equal(cells[..., table.observed], table.values[table.observed].expand_as(cells[..., table.observed]))
    for column, n_categories in enumerate(table.n_categories):
        if n_categories:
            codes = torch.arange(n_categories, dtype=cells.dtype)
            assert torch.isin(cells[..., column], codes).all()


def test_missing_cells_are_filled_with_possible_ones(ensemble, table):
    assert_cells_are_possible(impute(ensemble, table.values, table.observed), table)
    draws = drawn(ensemble, table, 9)
    assert draws.shape == (9, *table.values.shape)
    assert_cells_are_possible(draws, table)
    free = table._replace(observed=torch.zeros_like(table.observed))
    cells = sample(ensemble, len(table.values), make_generator(0))
    assert cells.shape == table.values.shape
    assert_cells_are_possible(cells, free)
    assert_cells_are_possible(impute(ensemble, free.values, free.observed), free)
    assert_cells_are_possible(decode(ensemble, encode(ensemble, *table[:2])), free)


def test_what_a_missing_cell_holds_has_no_influence(ensemble, table):
    values, observed = (part[:20] for part in table[:2])
    other = torch.where(observed, values, 1.0)
    for function in POINTS:
        torch.testing.assert_close(function(ensemble, other, observed), function(ensemble, values, observed))


def test_imputing_the_imputed_changes_nothing(ensemble, table):
    filled = impute(ensemble, table.values, table.observed)
    assert torch.equal(impute(ensemble, filled, torch.ones_like(table.observed)), filled)


@pytest.mark.parametrize("function", POINTS)
def test_a_row_does_not_depend_on_its_batch(ensemble, table, function):
    whole = function(ensemble, table.values, table.observed)
    order = RandomTensors().order(len(whole))
    shuffled = function(ensemble, table.values[order], table.observed[order])
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-7)
    alone = torch.cat([function(ensemble, table.values[[i]], table.observed[[i]]) for i in range(5)])
    torch.testing.assert_close(alone, whole[:5], rtol=0, atol=1e-7)


def test_slices_of_rows_do_not_matter(ensemble, table):
    """So many rows do not fit in one slice."""
    model = ensemble.joint
    times = 1 + BUDGET // (model.numbers_per_row(model.n_draws) * len(table.values))
    values, observed = (part.repeat(times, 1) for part in table[:2])
    once = log_likelihood(ensemble, *table[:2])
    torch.testing.assert_close(log_likelihood(ensemble, values, observed), torch.cat([once] * times))
    draws = draw(ensemble, values, observed, 3, make_generator(0))
    assert draws.shape == (3, *values.shape)
    assert torch.equal(draws[:, observed], values[observed].expand(3, -1))


def test_the_noise_that_is_kept_is_neither_changed_by_who_has_it_nor_bound_to_a_mode(ensemble):
    with torch.inference_mode():
        first = latent_noise(ensemble.joint, 37)  # so many nobody else asks for
        expected = first.clone()
        first.zero_()
    later = latent_noise(ensemble.joint, 37)
    assert torch.equal(later, expected)
    later.mul(torch.ones(1, dtype=later.dtype, requires_grad=True)).sum().backward()


def test_expectations_are_those_of_both_models_by_their_weights(ensemble, table):
    values, observed = (part.unsqueeze(0) for part in table[:2])
    weight = ensemble.stacking_weight[ensemble.joint.likelihoods.expectation_columns]
    joint, conditional = (
        model.expectations(values, observed, latent_noise(model)).mean(0)
        for model in (ensemble.joint, ensemble.conditional)
    )
    expected = weight * joint + (1 - weight) * conditional
    torch.testing.assert_close(expectations(ensemble, *table[:2]), expected.detach())


def test_draws_scatter_around_the_point_estimates(ensemble, table):
    draws = drawn(ensemble, table, 400)
    points = impute(ensemble, table.values, table.observed)
    numbers = torch.tensor([not n_categories for n_categories in table.n_categories])
    hidden = ~table.observed & numbers
    error = (draws.mean(0) - points)[hidden] / (draws.std(0)[hidden] / 400**0.5)
    assert error.square().mean().sqrt() < 2.5  # importance resampling and finite noise add to one
    assert (draws.std(0)[hidden] > 0).all()
    modes = (draws == points).double().mean(0)[~table.observed & ~numbers]
    assert (modes > 0.1).all()


def test_half_of_the_draws_lie_below_the_median(ensemble, table):
    draws = drawn(ensemble, table, 400)
    middle = medians(ensemble, *table[:2])
    hidden = ~table.observed[:, [0, 2, 3]]  # numbers without few values
    below = (draws < middle).double().mean(0)[:, [0, 2, 3]][hidden]
    assert below.mean().item() == pytest.approx(0.5, abs=0.02)
    assert (below - 0.5).abs().max() < 0.25


def test_draws_come_from_the_generator_alone(ensemble, table):
    state = torch.get_rng_state()
    once, again, other = (drawn(ensemble, table, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    one, same = (sample(ensemble, 4, make_generator(1)) for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("column", [4, 5, 6])
def test_probabilities_of_the_classes_sum_to_one(ensemble, column):
    n = N_CATEGORIES[column]
    values, observed = torch.zeros(n, 7, dtype=F64), torch.zeros(n, 7, dtype=torch.bool)
    values[:, column], observed[:, column] = torch.arange(n), True
    total = log_likelihood(ensemble, values, observed).exp().sum().item()
    assert total == pytest.approx(1.0, abs=0.15)  # 64 draws: Monte Carlo noise


def test_density_of_a_number_integrates_to_one(ensemble):
    grid = torch.linspace(-8, 8, 401, dtype=F64)
    values, observed = torch.zeros(401, 7, dtype=F64), torch.zeros(401, 7, dtype=torch.bool)
    values[:, 0], observed[:, 0] = grid, True
    density = log_likelihood(ensemble, values, observed).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=0.1)


def test_an_empty_row_says_nothing(ensemble, table):
    nothing = torch.zeros_like(table.observed)
    torch.testing.assert_close(
        log_likelihood(ensemble, table.values, nothing), torch.zeros(80, dtype=F64), rtol=0, atol=0.05
    )
    assert not cell_log_likelihood(ensemble, table.values, nothing).any()


def test_members_are_a_mixture(ensemble, table):
    """Their bounds are averaged as densities."""
    joint = ensemble.joint
    _, log_w = joint.importance_samples(*(part.unsqueeze(0) for part in table[:2]), latent_noise(joint))
    members = log_w.logsumexp(1) - math.log(log_w.shape[1])
    expected = members.logsumexp(0) - math.log(len(members))
    torch.testing.assert_close(log_likelihood(ensemble, *table[:2]), expected.detach())


def test_cells_of_a_lone_cell_are_the_row(ensemble, table):
    """With one observed cell its density given the rest is the density of the row."""
    one = torch.zeros_like(table.observed)
    one[:, 5] = True
    cells = cell_log_likelihood(ensemble, table.values, one)
    assert not cells[:, [0, 1, 2, 3, 4, 6]].any()
    torch.testing.assert_close(cells[:, 5], log_likelihood(ensemble, table.values, one), rtol=0, atol=0.25)


def test_columns_hidden_together_do_not_see_each_other(ensemble, table):
    values, observed = (part[:15] for part in table[:2])
    each = cell_log_likelihood(ensemble, values, observed)
    assert torch.equal(cell_log_likelihood(ensemble, values, observed, n_passes=7), each)
    together = cell_log_likelihood(ensemble, values, observed, n_passes=1)
    for column in range(7):
        alone = torch.zeros_like(observed)
        alone[:, column] = observed[:, column]
        torch.testing.assert_close(together[:, column], cell_log_likelihood(ensemble, values, alone)[:, column])


def test_the_order_in_which_cells_are_hidden_is_each_rows_own(ensemble, table):
    """Two passes: which cells a cell is hidden with is the row's order alone."""
    order = RandomTensors().uniform(80, 7).argsort(1)
    by_order = cell_log_likelihood(ensemble, *table[:2], n_passes=2, order=order)
    for row in (0, 11):
        first = order[row, ::2]
        rest = table.observed[[row]].clone()
        rest[0, first] = False
        for column in first[table.observed[row, first]].tolist():
            seen = rest.clone()
            seen[0, column] = True
            alone = cell_log_likelihood(ensemble, table.values[[row]], seen)[0, column]
            torch.testing.assert_close(by_order[row, column], alone)
