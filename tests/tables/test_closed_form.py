"""The closed form: exact without smoothers, blind to what is hidden and to the row itself, its draws what it says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, mixed, rows_of

from vaeimpute.gaussian.factor_analysis import conditional
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.persistence import from_state, to_state
from vaeimpute.tables.closed_form import ClosedFormSizes, ClosedFormStack, ClosedFormVAE
from vaeimpute.tables.closed_form_fit import fit_closed_form, fit_linear_stage
from vaeimpute.tables.data import cell_specs
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import latent_noise

CLASSES = {kind.__name__: kind for kind in (ClosedFormVAE, ClosedFormStack)}
GAUSSIAN = CellSpec("gaussian")


def fitted(values, observed, specs, seed=0):
    """With all stages."""
    options = {"budget": TimeBudget(), "generator": make_generator(seed)}
    linear = fit_linear_stage(values, observed, specs, **options)
    return fit_closed_form(linear, specs, max_iter=40, report=lambda *told: None, **options).model


def curve(n=400, seed=0):
    """A column, its sign and its square, a linear one; a fifth of the cells missing, which hold zero."""
    random = RandomTensors(seed)
    x = random.normal(n, 1)
    values = torch.cat([x, torch.sign(x), (x.square() - 1) / 1.4, x], 1) + 0.2 * random.normal(n, 4)
    observed = ~random.mask(n, 4, rate=0.2)
    return torch.where(observed, values, 0), observed


@pytest.fixture(scope="module")
def numbers():
    return curve()


@pytest.fixture(scope="module")
def of_numbers(numbers):
    model = fitted(*numbers, [GAUSSIAN] * 4)
    assert (model.linear_share < 1).any()
    for name in ("stack_coef", "feature_coef"):  # so that every part has a say
        getattr(model, name).copy_(0.05 * RandomTensors(1).normal(*getattr(model, name).shape))
    model.stack_most.fill_(1)
    model.feature_most.fill_(1)
    return model


@pytest.fixture(scope="module")
def table():
    return mixed(120)


@pytest.fixture(scope="module")
def of_mixed(table):
    return fitted(table.values, table.observed, cell_specs(table))


@pytest.fixture(params=["numbers", "mixed"])
def case(request):
    """A model, and rows."""
    if request.param == "numbers":
        return request.getfixturevalue("of_numbers"), *request.getfixturevalue("numbers")
    return request.getfixturevalue("of_mixed"), *request.getfixturevalue("table")[:2]


def moments(model, values, observed):
    with torch.no_grad():
        return model.moments(values, observed)[:2]


def expectations(model, values, observed):
    with torch.no_grad():
        return model.expectations(values.unsqueeze(0), observed.unsqueeze(0), latent_noise(model))


# ---- the linear VAEs ---------------------------------------------------------------------------------------------


def linear_only(*truths, weight=None):
    """A closed form of linear VAEs of the same width alone."""
    F, rank = truths[0].W.shape
    model = ClosedFormVAE(ClosedFormSizes(len(truths), rank, 0, 0, 0, -6.0), [GAUSSIAN] * F).double()
    for name, parts in zip(("W", "b", "psi"), zip(*truths, strict=True), strict=True):
        getattr(model, name).copy_(torch.stack(parts))
    model.linear_weight.copy_(torch.ones(1) if weight is None else torch.tensor(weight))
    model.variance_power[0] = 1
    model.empty_variance[0] = truths[0].W.square().sum(1) + truths[0].psi
    return model


def test_without_smoothers_it_is_the_linear_vae():
    truth = factor_analysis()
    values, observed = rows_of(truth, 50, missing=0.4)
    model, exact = linear_only(truth), conditional(values, observed, truth)
    ours = moments(model, values, observed)
    torch.testing.assert_close(ours, tuple(exact))
    torch.testing.assert_close(expectations(model, values, observed)[0], exact.mean)


def test_linear_vaes_are_averaged_by_their_weights():
    """The variance is that of the first, which is the best."""
    one, other = (factor_analysis(seed=seed)._replace(b=RandomTensors(seed).normal(6)) for seed in range(2))
    values, observed = rows_of(one, 50, missing=0.4)
    mean, variance = moments(linear_only(one, other, weight=[0.7, 0.3]), values, observed)
    exact = [conditional(values, observed, truth) for truth in (one, other)]
    torch.testing.assert_close(mean, 0.7 * exact[0].mean + 0.3 * exact[1].mean)
    torch.testing.assert_close(variance, exact[0].variance)


def test_the_power_of_the_variance_is_the_columns_own():
    """In units of what a row without cells has: the variance of that row has no power."""
    truth = factor_analysis()._replace(psi=torch.linspace(0.1, 0.9, 6, dtype=F64))
    values, observed = rows_of(truth, 50, missing=0.4)
    observed[0] = False
    model, power = linear_only(truth), torch.linspace(0, 2.5, 6, dtype=F64)
    model.variance_power[0] = power
    empty = truth.W.square().sum(1) + truth.psi
    ours = moments(model, values, observed)[1]
    torch.testing.assert_close(ours, empty * (conditional(values, observed, truth).variance / empty) ** power)
    torch.testing.assert_close(ours[0], empty)


def test_moments_of_cells_are_those_of_the_features(case):
    model, values, observed = case
    mean, variance = moments(model, values, observed)
    expectations, of_cells = model.cell_moments(values, observed)
    torch.testing.assert_close(expectations, model.likelihoods.gaussian_expectations(mean, 0.5 * variance.log()))
    assert torch.equal(of_cells, variance[:, model.likelihoods.first_features])


# ---- rows --------------------------------------------------------------------------------------------------------


def test_what_a_hidden_cell_holds_has_no_influence(case):
    model, values, observed = case
    other = torch.where(observed, values, 1.0)
    torch.testing.assert_close(moments(model, other, observed), moments(model, values, observed))
    ours, theirs = (
        model.importance_samples(x.unsqueeze(0), observed.unsqueeze(0), latent_noise(model)) for x in (values, other)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_row_does_not_depend_on_its_batch(case):
    model, values, observed = case
    whole, order = moments(model, values, observed), RandomTensors().order(len(values))
    shuffled = moments(model, values[order], observed[order])
    torch.testing.assert_close(shuffled, tuple(part[order] for part in whole), rtol=0, atol=1e-9)
    for i in range(5):
        alone = moments(model, values[[i]], observed[[i]])
        torch.testing.assert_close(alone, tuple(part[[i]] for part in whole), rtol=0, atol=1e-9)


def test_many_rows_are_answered_in_slices(of_numbers, numbers, monkeypatch):
    from vaeimpute import batching

    whole = moments(of_numbers, *numbers)
    monkeypatch.setattr(batching, "BUDGET", 7 * 4 * len(of_numbers.reference))
    assert len(list(batching.row_slices(160, 4 * len(of_numbers.reference)))) > 10
    torch.testing.assert_close(moments(of_numbers, *numbers), whole, rtol=0, atol=1e-9)


def features_of(model, values, observed):
    visible = observed[:, model.likelihoods.feature_columns]
    return torch.where(visible, model.likelihoods.features(values), 0), visible.to(values)


def test_a_row_of_the_reference_is_known_by_what_it_holds(case):
    model, values, observed = case
    x, visible = features_of(model, values, observed)
    assert len(model.reference) == len(values)  # all of them, in another order
    place = model._place(x, visible)
    assert (place >= 0).all()
    assert torch.equal(model.reference[place] * model.reference_known[place], x)
    assert torch.equal(model.reference_known[place], visible)
    torch.testing.assert_close(model._place(x[[7]], visible[[7]]), place[[7]])


def test_another_row_is_not(case):
    """Beside it, or with one of its cells hidden."""
    model, values, observed = case
    complete = observed.all(1)
    values, observed = values[complete], observed[complete]
    beside, fewer = values.clone(), observed.clone()
    beside[:, 0] += 1e-6
    fewer[:, 0] = False
    for x, o in ((beside, observed), (values, fewer)):
        assert (model._place(*features_of(model, x, o)) == -1).all()


def test_rows_beyond_all_others_are_sought_in_vain(of_numbers):
    x = torch.tensor([[1e6] * 4, [-1e6] * 4], dtype=F64)
    assert of_numbers._place(x, torch.ones_like(x)).tolist() == [-1, -1]


def without_reference(model, place):
    """The same model, with one reference row less."""
    sizes = replace(model.sizes, n_reference=model.sizes.n_reference - 1)
    smaller = ClosedFormVAE(sizes, model.likelihoods.specs).to(model.W)
    for name, value in model.state_dict().items():
        rows = torch.arange(len(value)) != place if name.startswith("reference") else slice(None)
        getattr(smaller, name).copy_(value[rows])
    return smaller.eval()


def test_a_training_row_is_no_evidence_of_itself(case):
    """It gets what it would get if it were not there."""
    model, values, observed = case
    place = model._place(*features_of(model, values, observed))
    moved = 0
    for i in (3, 11, 20):
        ours = moments(model, values[[i]], observed[[i]])
        smaller = without_reference(model, place[i].item())
        torch.testing.assert_close(moments(smaller, values[[i]], observed[[i]]), ours)
        # to any other row, one that is just beside it, it is evidence
        other = values[[i]] + 1e-9 * observed[[i]] * (torch.arange(values.shape[1]) == observed[i].double().argmax())
        moved += (moments(model, other, observed[[i]])[0] - ours[0]).abs().max() > 1e-6
    assert moved


def test_one_of_two_rows_that_are_the_same_is_evidence_of_the_other(numbers):
    values, observed = (part.repeat(2, 1) for part in numbers)
    model = fitted(values, observed, [GAUSSIAN] * 4)
    place = model._place(*features_of(model, values[:5], observed[:5]))
    assert (place >= 0).all()
    assert all(part.isfinite().all() for part in moments(model, values, observed))


# ---- draws -------------------------------------------------------------------------------------------------------


def test_draws_have_its_mean_and_variance(of_numbers, numbers):
    """Noise of mean zero and covariance one, exactly: no Monte Carlo error is left."""
    rank = of_numbers.n_latent
    noise = torch.linalg.qr(RandomTensors().normal(64, rank + 1).index_fill(1, torch.tensor([0]), 1.0))[0][:, 1:] * 8
    values, observed = (part.unsqueeze(0) for part in numbers)
    params, log_w = of_numbers.importance_samples(values, observed, noise)
    assert params.shape == (1, 64, *numbers[0].shape[:1], 8)
    assert not log_w.any()
    location, log_scale = params.unflatten(-1, (-1, 2)).unbind(-1)
    mean, variance = moments(of_numbers, *numbers)
    torch.testing.assert_close(location.mean(1)[0], mean)
    spread = location.var(1, correction=0) + torch.exp(2 * log_scale).mean(1)
    torch.testing.assert_close(spread[0], variance)


def test_variances_are_positive(case):
    assert (moments(*case)[1] > 0).all()


def test_its_mean_is_the_sum_of_its_parts(case):
    """Linear mean and smoothers by their shares, what stacking adds, and what random features add to that."""
    model, values, observed = case
    x, visible = features_of(model, values, observed)
    given, place = model.given(x, visible > 0), model._place(x, visible)
    each = [model.smooth(theta, given, place, model.linear_vaes[0]) for theta in model.theta]
    smooth, votes, _ = (torch.stack(part).mean(0) for part in zip(*each, strict=True))
    doubt = torch.where(model.is_class, 1, (given.variance / model.typical_variance).clamp(max=1))
    mean = given.mean + doubt * (1 - model.linear_share) * (smooth - given.mean)
    estimates = torch.cat([votes, given.mean.unsqueeze(1)], 1) - mean.unsqueeze(1)  # (B, H + 1, F)
    added = doubt * torch.einsum("bhf,fh->bf", estimates, model.stack_coef)
    mean = mean + added.clamp(-model.stack_most, model.stack_most)
    inputs = model.random_features(torch.where(visible > 0, x, mean), visible)
    added = doubt * (inputs @ model.feature_coef.T)
    added = added.clamp(-model.feature_most, model.feature_most)
    ours, numbers = moments(model, values, observed)[0], ~model.is_class
    torch.testing.assert_close(ours[:, numbers], (mean + added)[:, numbers])
    torch.testing.assert_close(ours, model.indicators.moved(mean, added))


def test_expectations_of_numbers_are_its_means(of_numbers, numbers):
    torch.testing.assert_close(expectations(of_numbers, *numbers)[0], moments(of_numbers, *numbers)[0])


def test_expectations_of_classes_are_probabilities(of_mixed, table):
    ours, columns = expectations(of_mixed, *table[:2])[0], of_mixed.likelihoods.expectation_columns
    for column, n_categories in enumerate(table.n_categories):
        if n_categories:
            own = ours[:, columns == column]
            assert (own >= 0).all()
            torch.testing.assert_close(own.sum(1), torch.ones(len(own), dtype=F64))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rows_of_all_cells_and_of_none(case, rate):
    model, values, _ = case
    observed = torch.full(values.shape, rate == 1.0)
    mean, variance = moments(model, values, observed)
    assert mean.isfinite().all()
    assert variance.isfinite().all()
    if not rate:  # nothing is known of them: they are all the same
        torch.testing.assert_close(mean, mean[:1].expand_as(mean))


@pytest.mark.parametrize("size", [20.0, 1e6])
def test_rows_far_from_all_others_have_answers(of_numbers, numbers, size):
    """Corrections do not grow with them: beside the linear mean they are bounded."""
    values, observed = size * numbers[0], numbers[1]
    mean, variance = moments(of_numbers, values, observed)
    assert mean.isfinite().all()
    assert variance.isfinite().all()


def test_it_is_not_trained(of_numbers, numbers):
    with pytest.raises(NotImplementedError, match="ClosedFormVAE is solved"):
        of_numbers.loss(Batch(*numbers), 1, make_generator(0))
    assert not list(of_numbers.parameters())


# ---- stacks and files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(numbers):
    """Its members have other ranks."""
    models = [fitted(*numbers, [GAUSSIAN] * 4, seed) for seed in range(2)]
    narrow = linear_only(factor_analysis(4, 1)).eval()
    return ClosedFormStack(*models, narrow).eval()


def test_a_stack_averages_its_models(stack, numbers):
    assert stack.n_members == 3
    assert stack.n_latent == max(model.n_latent for model in stack.models)
    ours = expectations(stack, *numbers)
    assert len(ours) == 3
    expected = [expectations(model, *numbers)[0] for model in stack.models]
    assert not torch.allclose(expected[0], expected[1])
    torch.testing.assert_close(ours.mean(0), torch.stack(expected).mean(0))
    each = [model.cell_moments(*numbers) for model in stack.models]
    for moment, parts in zip(stack.cell_moments(*numbers), zip(*each, strict=True), strict=True):
        torch.testing.assert_close(moment, torch.stack(parts).mean(0))


def test_members_of_a_stack_may_have_rows_of_their_own(stack, numbers):
    values, observed = (torch.stack([part[:20], part[20:40], part[40:60]]) for part in numbers)
    with torch.no_grad():
        ours = stack.expectations(values, observed, latent_noise(stack))
    for m, model in enumerate(stack.models):
        torch.testing.assert_close(ours[m], expectations(model, values[m], observed[m])[0])


def test_draws_of_a_stack_are_those_of_its_members(stack, numbers):
    noise, (values, observed) = latent_noise(stack), (part.unsqueeze(0) for part in numbers)
    params, log_w = stack.importance_samples(values, observed, noise)
    assert log_w.shape == (3, len(noise), len(numbers[0]))
    for m, model in enumerate(stack.models):
        own, _ = model.importance_samples(values, observed, noise[:, : model.n_latent])
        torch.testing.assert_close(params[m], own[0])
    with pytest.raises(NotImplementedError, match="ClosedFormStack is solved"):
        stack.loss(Batch(*numbers), 1, make_generator(0))


@pytest.mark.parametrize("name", ["of_numbers", "of_mixed", "stack"])
def test_state_round_trip(request, name):
    model = request.getfixturevalue(name)
    rows = request.getfixturevalue("table")[:2] if name == "of_mixed" else request.getfixturevalue("numbers")
    tensors, description = to_state({"model_": model})
    again = from_state(tensors, json.loads(json.dumps(description)), CLASSES, torch.device("cpu"))["model_"]
    assert torch.equal(expectations(again, *rows), expectations(model, *rows))
    back, same = to_state({"model_": again})
    assert same == description
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_single_precision_says_the_same(of_numbers, numbers):
    tensors, description = to_state({"model_": of_numbers})
    low = from_state(tensors, description, CLASSES, torch.device("cpu"))["model_"].float()
    values, observed = numbers
    ours = moments(low, values.float(), observed)
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), moments(of_numbers, *numbers)[0], rtol=0, atol=5e-3)
    x, visible = features_of(low, values.float(), observed)
    assert (low._place(x, visible) >= 0).all()
