"""The loop: the best evaluation is kept, what ends a training ends it, and batches are whatever `get_batch` gives."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, fit_factor_analysis
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.tables.models import JointVAE, Sizes
from vaeimpute.training.loop import Validation, fit_model, held_out_residuals, refit_model, summed_per_column
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import Schedule, TimeBudget
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import latent_noise

N, D, M = 200, 4, 2


class Trial(NamedTuple):
    """A joint model on its linear start, and what it takes to train it."""

    model: JointVAE
    values: torch.Tensor
    validation: Validation

    def get_batch(self, size, generator):
        rows = torch.randint(N, (M, size), generator=generator)
        member = torch.arange(M).unsqueeze(1)
        return Batch(self.values[rows], self.validation.visible[member, rows])

    def fit(self, schedule, budget=None, **options):
        budget = budget or TimeBudget()
        return fit_model(
            *(self.model, self.get_batch, self.validation, [schedule]),
            generator=make_generator(0),
            budget=budget,
            **options,
        )


@pytest.fixture
def trial():
    """Two columns and the squares of both: the line has nothing to say of these."""
    random = RandomTensors()
    z = random.normal(N, 2)
    values = torch.cat([z, (z.square() - 1) / 2**0.5], 1) + 0.1 * random.normal(N, D)
    observed = ~random.mask(N, D, rate=0.1)
    held_out = observed & random.mask(M, N, D, rate=0.15)
    visible = observed & ~held_out
    fits = [fit_factor_analysis(values, v, 2) for v in visible]
    model = JointVAE(Sizes(M, 2, 16, 1, 0.0, -3.5), [CellSpec("gaussian")] * D, make_generator(0)).double()
    backbone = FactorAnalysis(*(torch.stack(p) for p in zip(*fits, strict=True)))
    model.start(backbone)
    return Trial(model.eval(), values, Validation(values, visible, held_out, latent_noise(model, 16)))


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("learning_rate", [1e-2, 30.0])
def test_the_best_evaluation_on_held_out_cells_is_kept(trial, learning_rate):
    model, _, validation = trial
    with torch.no_grad():
        before, start = held_out_residuals(model, validation), state_of(model)
    result = trial.fit(Schedule(100, 32, learning_rate, (2, 2), patience=10, evaluate_every=20))
    with torch.no_grad():
        after = held_out_residuals(model, validation)
    torch.testing.assert_close(after, result.residuals)
    n_held_out = validation.held_out.sum().item()
    assert result.history[0]["error"] == pytest.approx(before.square().sum().item() / n_held_out)
    errors = {record["step"]: record["relative_error"] for record in result.history}
    assert errors[0] == pytest.approx(1.0)
    assert not model.training
    if learning_rate > 1:  # nothing to gain: the start itself
        assert result.steps == 0
        assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())
    else:  # a real gain, and none was better
        assert errors[result.steps] == min(errors.values()) < 1
        per_column = [residuals.square().sum((0, 1)) for residuals in (after, before)]
        assert (per_column[0] / per_column[1]).mean().item() == pytest.approx(errors[result.steps])


def test_patience_ends_the_training(trial):
    result = trial.fit(Schedule(1000, 32, 30.0, (1, 1), patience=2, evaluate_every=10))
    assert [record["step"] for record in result.history] == [0, 10, 20]


def test_a_budget_spent_between_two_evaluations_ends_the_training(trial):
    result = trial.fit(Schedule(10**6, 8, 1e-3, evaluate_every=10**6), TimeBudget(0.2))
    assert [record["step"] == 0 for record in result.history] == [True, False]
    assert result.history[-1]["step"] < 1000


def test_no_step_is_left_out_or_taken_twice(trial):
    """The last stretch may be shorter; steps of the refit are no steps of the training."""
    sizes = []

    def get_batch(size, generator):
        sizes.append(size)
        return trial.get_batch(size, generator)

    options = {"generator": make_generator(0), "budget": TimeBudget()}
    schedule = Schedule(25, 8, 1e-3, evaluate_every=10)
    result = fit_model(trial.model, get_batch, trial.validation, [schedule], **options)
    assert sizes == [8] * 25
    assert [record["step"] for record in result.history] == [0, 10, 20, 25]
    refit_model(trial.model, get_batch, schedule.for_refit(20), **options)
    assert sizes == [8] * (25 + 6)
    refit_model(trial.model, get_batch, schedule.for_refit(0), **options)
    assert len(sizes) == 31


def test_an_interrupt_keeps_the_best_so_far(trial):
    def interrupt(model, record, n_steps):
        if record["step"] == 40:
            raise KeyboardInterrupt

    budget = TimeBudget()
    schedule = Schedule(100, 32, 1e-2, (2, 2), evaluate_every=20)
    result = trial.fit(schedule, budget, on_evaluation=interrupt)
    assert budget.interrupted
    assert [record["step"] for record in result.history] == [0, 20, 40]
    with torch.no_grad():
        torch.testing.assert_close(held_out_residuals(trial.model, trial.validation), result.residuals)


def test_the_same_generator_gives_the_same_training(trial):
    schedule = Schedule(60, 32, 1e-2, (2, 2), evaluate_every=20)
    start, state = state_of(trial.model), torch.get_rng_state()
    trial.fit(schedule)
    first = state_of(trial.model)
    assert not all(torch.equal(value, start[key]) for key, value in first.items())
    trial.model.load_state_dict(start)
    trial.fit(schedule)
    assert all(torch.equal(value, first[key]) for key, value in state_of(trial.model).items())
    assert torch.equal(state, torch.get_rng_state())


def test_residuals_are_those_of_the_expectations(trial):
    model, values, (_, visible, held_out, noise, _) = trial
    with torch.no_grad():
        ours = held_out_residuals(model, trial.validation)
        residuals = model.expectations(values.expand(M, -1, -1), visible, noise) - values
    torch.testing.assert_close(ours, torch.where(held_out, residuals, 0))


def test_what_stands_for_an_expectation_counts_for_its_column():
    products = torch.arange(12.0).view(2, 2, 3)
    assert summed_per_column(products, torch.tensor([0, 2, 2]), 4).tolist() == [18.0, 0.0, 48.0, 0.0]


def test_a_model_learns_from_rows_that_are_made_on_the_fly():
    """`get_batch` need not know a table: fresh rows of an exact law, seen once, teach their conditional means."""
    truth = factor_analysis()
    n_columns, n_made = len(truth.b), 0

    def get_batch(size, generator):
        nonlocal n_made
        n_made += size
        z, noise = (torch.randn(1, size, k, dtype=F64, generator=generator) for k in (truth.rank, n_columns))
        values = z @ truth.W.T + truth.psi.sqrt() * noise
        return Batch(values, torch.ones_like(values, dtype=torch.bool))

    values, visible = rows_of(truth, 2000)
    held_out = ~visible.unsqueeze(0)
    model = JointVAE(Sizes(1, 2, 32, 1, 0.0, -3.5), [CellSpec("gaussian")] * n_columns, make_generator(0)).double()
    nothing = FactorAnalysis(0 * truth.W, truth.b, torch.ones_like(truth.b))
    small = nothing._replace(W=0.1 * torch.eye(n_columns, 2, dtype=F64))  # a start that knows next to nothing
    model.start(FactorAnalysis(*(p.unsqueeze(0) for p in small)))
    validation = Validation(values, visible.unsqueeze(0), held_out, latent_noise(model, 8))
    schedule = Schedule(400, 64, 1e-2, (4, 4), evaluate_every=100)
    result = fit_model(model, get_batch, validation, [schedule], generator=make_generator(0), budget=TimeBudget())
    assert n_made == 400 * 64
    exact = (conditional(values, visible, truth).mean - values)[~visible].square().mean().item()
    start, learnt = result.history[0]["error"], min(record["error"] for record in result.history)
    assert start > 2 * exact
    assert learnt < 1.05 * exact
