"""The smoothers' training: each half's own teacher, the same for a seed, and a step that is found."""

from __future__ import annotations

import pytest
import torch
from toy import F64, RandomTensors, given_by

from vaeimpute.gaussian.factor_analysis import conditional, fit_factor_analysis
from vaeimpute.tables.queries import N_FOLDS, hide_each_cell_once
from vaeimpute.tables.smoother import Given, Layout, Reference, estimate, gates, prepare, start_theta
from vaeimpute.tables.smoother_fit import SmootherTraining
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget

STEPS = 60
NUMBERS = Layout([], slice(None), torch.full((2, 2), torch.nan))


class Trial:
    """``y = sign(x)``: a line leaves much of it, the reference rows know it."""

    def __init__(self, n=200, n_steps=STEPS, n_reference_in_step=10_000, seed=0, y=torch.sign):
        random = RandomTensors()
        x = 3.4 * random.uniform(n, 1) - 1.7
        self.values, self.observed = torch.cat([x, y(x)], 1), torch.ones(n, 2, dtype=torch.bool)
        self.queries, fold = hide_each_cell_once(self.values, self.observed, torch.arange(2), 10**6, make_generator(1))
        self.lines = [fit_factor_analysis(self.values[fold != f], self.observed[fold != f], 1) for f in range(N_FOLDS)]
        parts = [
            given_by(self.queries.x[part], self.queries.visible[part], line)
            for part, line in zip(self.queries.slices(), self.lines, strict=True)
        ]
        self.given = Given(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self.place = self.queries.row
        self.half = (random.order(n) % 2)[self.queries.row]
        self.reference = Reference(self.values, 0 * self.values, torch.ones_like(self.values))
        self.n_steps, self.n_reference_in_step, self.seed = n_steps, n_reference_in_step, seed

    def training(self, **changes):
        parts = {"queries": self.queries, "given": self.given, "place": self.place, "half": self.half} | changes
        weight, generator = torch.ones(2, dtype=F64), make_generator(self.seed)
        return SmootherTraining(
            **parts,
            backbones=self.lines,
            weight=weight,
            layout=NUMBERS,
            n_steps=self.n_steps,
            n_reference_in_step=self.n_reference_in_step,
            generator=generator,
        )

    def learnt(self, steps=None, **changes):
        training = self.training(**changes)
        training.run(range(self.n_steps) if steps is None else steps, self.reference, TimeBudget(), 1.0)
        return training

    def judged(self, theta):
        """Each query's answer by the smoother that was taught by the other half of the rows, and by the line."""
        answers = torch.empty_like(self.queries.truth)
        for f, line in enumerate(self.lines):
            for s in range(2):
                rows = ((self.queries.fold == f) & (self.half == s)).nonzero().squeeze(-1)
                given = Given(*(part.unsqueeze(0) for part in self.given.at(rows)))
                one = theta[s : s + 1]
                votes = estimate(
                    one, prepare(one, self.reference, NUMBERS, line), given, self.place[rows].unsqueeze(0), line
                )
                gate = gates(one)
                answers[rows] = (gate[:, :, 0] * given.mean + (gate[:, :, 1:] * votes.mean).sum(2))[0]
        return answers


@pytest.fixture(scope="module")
def trial():
    return Trial()


def test_a_step_is_found(trial):
    of_line = trial.queries.errors(trial.given.mean)
    at_the_start, learnt = (
        trial.queries.errors(trial.judged(theta))
        for theta in (start_theta(2).double().expand(2, -1, -1), trial.learnt().averaged)
    )
    assert learnt[1] < 0.2 * of_line[1]
    assert learnt[1] < 0.5 * at_the_start[1]
    assert learnt[0] < of_line[0]  # of x the sign tells as much as the line does, and its range besides


def test_on_a_line_the_linear_mean_stays():
    trial = Trial(y=lambda x: x + 0.5 * RandomTensors(5).normal(*x.shape))
    errors = trial.queries.errors(trial.judged(trial.learnt().averaged))
    assert (errors < 1.05 * trial.queries.errors(trial.given.mean)).all()


def test_the_error_it_believes_is_the_one_it_makes():
    """The loss is a likelihood: once it has converged, squared errors are what its variance says."""
    trial = Trial(n=400, y=lambda x: torch.sign(x) + 0.3 * RandomTensors(5).normal(*x.shape))
    theta = trial.learnt().averaged
    squared = trial.queries.held_out * (trial.queries.truth - trial.judged(theta)).square() / trial.given.variance
    for s in range(2):
        own = trial.half == s
        share = (squared[own].sum(0) / trial.queries.held_out[own].sum(0))[1]
        assert share < 0.7
        assert torch.exp(2 * theta[s, -1, 1]).item() == pytest.approx(share.item(), rel=0.3)


def test_the_same_generator_gives_the_same_training(trial):
    state = torch.get_rng_state()
    one, same = (trial.learnt(range(10)).theta for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, Trial(seed=1).learnt(range(10)).theta)
    assert torch.equal(state, torch.get_rng_state())


def test_a_training_in_two_parts_is_the_same_training(trial):
    whole, parted = trial.learnt(), trial.learnt(range(25))
    assert parted.run(range(25, STEPS), trial.reference, TimeBudget(), 1.0) == STEPS
    assert torch.equal(parted.theta, whole.theta)
    assert torch.equal(parted.averaged, whole.averaged)


def test_averaged_is_the_mean_of_the_second_half(trial):
    training, seen = trial.training(), []
    for step in range(STEPS):
        if step <= STEPS // 2:
            assert torch.equal(training.averaged, training.theta.detach())
        training.run(range(step, step + 1), trial.reference, TimeBudget(), 1.0)
        seen.append(training.theta.detach().clone())
    torch.testing.assert_close(training.averaged, torch.stack(seen[STEPS // 2 :]).mean(0))


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_spent_budget_ends_the_training(trial, interrupted):
    budget = TimeBudget(None if interrupted else 0.0)
    budget.interrupted = interrupted
    training = trial.training()
    assert training.run(range(7, STEPS), trial.reference, budget, 0.5) == 7
    assert torch.equal(training.theta, training.averaged)
    torch.testing.assert_close(training.theta.detach(), start_theta(2).double().expand(2, -1, -1))
    assert training.run(range(5), trial.reference, TimeBudget(3600), 0.5) == 5


def test_a_smoother_is_taught_by_the_other_half_of_the_rows(trial):
    """Which is why its own half can judge it: what is hidden there has no influence."""
    truth = trial.queries.truth + 3.0 * (trial.half == 0).unsqueeze(1)
    before, after = (
        trial.learnt(range(12)).theta,
        trial.learnt(range(12), queries=trial.queries._replace(truth=truth)).theta,
    )
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_rows_that_are_no_reference_teach_nothing(trial):
    """Their own neighbours would count them less than at prediction."""
    place = torch.where(trial.queries.row % 3 == 0, -1, trial.place)
    truth = trial.queries.truth + 3.0 * (place < 0).unsqueeze(1)
    before, after = (
        trial.learnt(range(12), place=place, queries=queries).theta
        for queries in (trial.queries, trial.queries._replace(truth=truth))
    )
    assert torch.equal(before, after)


def test_a_cell_that_is_not_asked_for_teaches_nothing(trial):
    truth = torch.where(trial.queries.held_out > 0, trial.queries.truth, 9.0)
    before, after = (
        trial.learnt(range(12)).theta,
        trial.learnt(range(12), queries=trial.queries._replace(truth=truth)).theta,
    )
    assert torch.equal(before, after)


def test_few_voters_find_the_step_as_well(trial):
    """A random part of the reference rows is looked at in each step."""
    few = Trial(n_reference_in_step=80)
    theta = few.learnt().averaged
    assert not torch.equal(theta, trial.learnt().averaged)
    assert few.queries.errors(few.judged(theta))[1] < 0.3 * few.queries.errors(few.given.mean)[1]


def test_no_row_is_evidence_of_itself_among_few_voters():
    """Of noise every other row is as good; a row that voted for itself would teach tiny bandwidths."""
    trial = Trial(n=100, n_reference_in_step=60, y=lambda x: RandomTensors(5).normal(*x.shape))
    theta = trial.learnt().averaged
    assert (theta[:, 0, 0] > -2.5).all()
    assert trial.queries.errors(trial.judged(theta))[1] < 1.15 * trial.queries.errors(trial.given.mean)[1]


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_folds_without_rows_of_both_halves_are_passed_over(n):
    few = Trial(n=n)
    assert few.learnt().theta.isfinite().all()


def test_one_gross_error_does_not_blow_up_the_training():
    """Gradients are clipped."""
    trial = Trial()
    truth = trial.queries.truth.clone()
    truth[trial.queries.row == 3] += 1e6
    learnt = trial.learnt(queries=trial.queries._replace(truth=truth)).averaged
    assert learnt.isfinite().all()
    assert (learnt.abs() < 20).all()


def test_the_line_is_no_answer_to_a_step(trial):
    """Or there would be nothing to learn."""
    line = conditional(trial.values, torch.tensor([True, False]).expand(200, 2), trial.lines[0]).mean
    assert (line - trial.values)[:, 1].square().mean() > 0.1
