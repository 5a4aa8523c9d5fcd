"""The two models of a table: what they share, how they start, and what their losses may depend on."""

from __future__ import annotations

import json

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, mixed, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.persistence import from_state, to_state
from vaeimpute.tables.fit import fit_ensemble
from vaeimpute.tables.models import ConditionalVAE, JointVAE, Sizes
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import Ensemble, cell_log_likelihood, draw, impute, latent_noise, log_likelihood

M, B, D = 2, 30, 6
KINDS = [JointVAE, ConditionalVAE]
CLASSES = {kind.__name__: kind for kind in (*KINDS, Ensemble)}


@pytest.fixture(scope="module")
def table():
    return mixed()


@pytest.fixture(scope="module")
def ensemble(table):
    return fit_ensemble(table, seed=0, dtype=F64, budget=TimeBudget(), max_iter=6)[0]


def started(kind, n_reference=0, dropout=0.0):
    """A model as it starts, its backbone, and rows."""
    truth = factor_analysis(D)
    values, observed = (part.expand(M, -1, -1) for part in rows_of(truth, B, missing=0.4))
    backbone = FactorAnalysis(*(p.expand(M, *p.shape) for p in truth))
    sizes = Sizes(M, truth.rank, 16, 1, dropout, -6.0, n_reference=n_reference)
    model = kind(sizes, [CellSpec("gaussian")] * D, make_generator(0)).double()
    model.start(backbone, values[0], observed[0], make_generator(1))
    model.remember(lambda rows: observed[:1, rows])
    return model, backbone, values, observed


def test_both_models_have_the_same_backbone(ensemble):
    models = ensemble.joint, ensemble.conditional
    orders = [model.likelihoods.feature_columns.argsort(stable=True) for model in models]
    for joint, other in zip(*(model.backbone for model in models), strict=True):
        assert torch.equal(joint[:, orders[0]], other[:, orders[1]])


def test_state_round_trip(ensemble, table):
    tensors, description = to_state({"ensemble_": ensemble})
    again = from_state(tensors, json.loads(json.dumps(description)), CLASSES, torch.device("cpu"))["ensemble_"]
    for function in (impute, log_likelihood, cell_log_likelihood):
        one, other = (function(e, table.values, table.observed) for e in (ensemble, again))
        assert torch.equal(one, other)
    one, other = (draw(e, table.values, table.observed, 3, make_generator(0)) for e in (ensemble, again))
    assert torch.equal(one, other)
    back, again_described = to_state({"ensemble_": again})
    assert again_described == description
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_the_conditional_model_starts_at_the_conditional_mean():
    """Without reference rows its gates have nothing to mix in, and its networks are silent at the start."""
    model, backbone, values, observed = started(ConditionalVAE)
    with torch.no_grad():
        expectations = model.expectations(values, observed, latent_noise(model))
    torch.testing.assert_close(expectations, conditional(values, observed, backbone).mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_reference", [0, 1, B])
def test_a_missing_cell_has_no_say(kind, n_reference):
    model, _, values, observed = started(kind, n_reference)
    noise = latent_noise(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=F64, generator=make_generator(2)))
        one, other = (
            model.importance_samples(x, observed, noise) for x in (values, torch.where(observed, values, 1e3))
        )
        for ours, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(ours, theirs)
        batches = Batch(values, observed), Batch(torch.where(observed, values, 1e3), observed)
        one, other = (model.loss(batch, 2, make_generator(3)) for batch in batches)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_comes_from_the_generator_alone(kind):
    model, _, values, observed = started(kind, B, dropout=0.2)
    state = torch.get_rng_state()
    with torch.no_grad():
        for stage in model.train().stages():
            batch = Batch(values, observed, torch.arange(B).expand(M, -1))
            once, again, other = (stage.loss(batch, 2, make_generator(seed)) for seed in (0, 0, 1))
            assert once.shape == (M, B)
            assert once.isfinite().all()
            assert torch.equal(once, again)
            assert not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_in_one_stage(kind):
    """Stages share no parameter, and together have all; members do not touch each other."""
    model, _, values, observed = started(kind, B)
    batch = Batch(values, observed, torch.arange(B).expand(M, -1))
    stages = model.stages()
    own = [id(p) for stage in stages for p in stage.parameters]
    assert sorted(own) == sorted(map(id, model.parameters()))
    with torch.no_grad():  # last layers are zero at the start: nothing before them would learn yet
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=F64, generator=make_generator(2)))
    for stage in stages:
        model.zero_grad()
        stage.loss(batch, 2, make_generator(0)).sum().backward()
        names = {id(p): name for name, p in model.named_parameters()}
        assert [names[id(p)] for p in stage.parameters if p.grad is None or not p.grad.any()] == []
        model.zero_grad()
        stage.loss(batch, 2, make_generator(0))[0].sum().backward()
        for p in stage.parameters:
            if p.grad is not None and len(p) == M and not names[id(p)].startswith("smoother."):
                assert not p.grad[1].any(), names[id(p)]


def test_a_batch_may_bring_a_backbone_that_has_not_seen_it():
    """A fold's rows get the conditional means of a linear model fitted to the others."""
    model, backbone, values, observed = started(ConditionalVAE)
    random = RandomTensors()
    other = FactorAnalysis(random.normal(D, 2), random.normal(D), 0.1 + random.uniform(D))
    batch = Batch(values, observed, None, other)
    with torch.no_grad():
        with_other = model.loss(batch, 1, make_generator(0))
        model.start(FactorAnalysis(*(p.expand(M, *p.shape) for p in other)), values[0], observed[0], make_generator(1))
        torch.testing.assert_close(model.loss(Batch(values, observed), 1, make_generator(0)), with_other)
    assert not torch.equal(model.W, backbone.W)
