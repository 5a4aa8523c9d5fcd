"""The joint model: how it starts, what its loss may depend on, and the linear VAE that it is without networks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from toy import F64, factor_analysis, mixed, rows_of

from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, posterior
from vaeimpute.gaussian.factor_analysis import log_likelihood as exact_log_likelihood
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.persistence import from_state, to_state
from vaeimpute.tables.closed_form import ClosedFormStack, ClosedFormVAE
from vaeimpute.tables.ensemble import TableEnsemble
from vaeimpute.tables.fit import fit_ensemble
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE, Sizes
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import cell_log_likelihood, impute, latent_noise, log_likelihood

M, B, D = 2, 30, 6
PARTS = (TableEnsemble, JointVAE, ClosedFormVAE, ClosedFormStack, Margins, IntervalCalibration, Lattice)
CLASSES = {kind.__name__: kind for kind in PARTS}
WIDTHS = pytest.mark.parametrize("width", [0, 16])


@pytest.fixture(scope="module")
def table():
    return mixed()


@pytest.fixture(scope="module", params=["auto", "full"])
def ensemble(table, request):
    return fit_ensemble(table, seed=0, dtype=F64, budget=TimeBudget(), max_iter=6, effort=request.param)[0]


def started(width, dropout=0.0):
    """A model as it starts, its backbone, and rows."""
    truth = factor_analysis(D)
    values, observed = (part.expand(M, -1, -1) for part in rows_of(truth, B, missing=0.4))
    backbone = FactorAnalysis(*(p.expand(M, *p.shape) for p in truth))
    model = JointVAE(Sizes(M, truth.rank, width, 1, dropout, -6.0), [CellSpec("gaussian")] * D, make_generator(0))
    model.double().start(backbone)
    return model, backbone, values, observed


def stir(model):
    """Last layers are zero at the start: nothing before them would do, or learn, anything."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=F64, generator=make_generator(2)))


def test_state_round_trip(ensemble, table):
    tensors, description = to_state({"ensemble_": ensemble})
    again = from_state(tensors, json.loads(json.dumps(description)), CLASSES, torch.device("cpu"))["ensemble_"]
    for function in (impute, log_likelihood, cell_log_likelihood):
        one, other = (function(e, table.values, table.observed) for e in (ensemble, again))
        assert torch.equal(one, other)
    one, other = (e.draw(table.values, table.observed, 3, 0) for e in (ensemble, again))
    assert torch.equal(one, other)
    assert torch.equal(ensemble.sample(9, 0), again.sample(9, 0))
    assert torch.equal(ensemble.medians(*table[:2]), again.medians(*table[:2]))
    back, again_described = to_state({"ensemble_": again})
    assert again_described == description
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


@WIDTHS
def test_it_starts_as_the_linear_vae(width):
    """Its networks are silent: the proposal is the posterior, and a draw has the likelihood as its weight."""
    model, backbone, values, observed = started(width)
    model.eval()
    noise = latent_noise(model, 8)
    with torch.no_grad():
        _, log_w = model.importance_samples(values, observed, noise)
        encoded = model.encode(values, observed)
    exact = exact_log_likelihood(values, observed, backbone)
    torch.testing.assert_close(log_w, exact.unsqueeze(1).expand_as(log_w))
    torch.testing.assert_close(encoded, posterior(values, observed, backbone)[0])


@WIDTHS
def test_its_expectations_start_at_the_conditional_means(width):
    """Of noise whose mean is zero."""
    model, backbone, values, observed = started(width)
    half = latent_noise(model, 8)
    with torch.no_grad():
        ours = model.eval().expectations(values, observed, torch.cat([half, -half]))
    torch.testing.assert_close(ours, conditional(values, observed, backbone).mean)


def test_without_networks_it_has_the_parameters_of_the_linear_vae_alone():
    model, backbone, _, _ = started(0)
    assert {name for name, _ in model.named_parameters()} == {"decoder_W", "decoder_b", "log_scale"}
    assert torch.equal(model.decoder_W, backbone.W)
    torch.testing.assert_close(torch.exp(2 * model.log_scale), backbone.psi)
    assert model.n_draws < started(16)[0].n_draws


def test_members_may_start_from_linear_vaes_of_their_own():
    model, _, values, observed = started(0)
    each = [factor_analysis(D, seed=seed) for seed in range(M)]
    model.start(FactorAnalysis(*(torch.stack(parts) for parts in zip(*each, strict=True))))
    with torch.no_grad():
        _, log_w = model.importance_samples(values, observed, latent_noise(model, 4))
    members = log_w.logsumexp(1) - math.log(4)
    for m, truth in enumerate(each):
        torch.testing.assert_close(members[m], exact_log_likelihood(values[m], observed[m], truth))


@WIDTHS
def test_a_missing_cell_has_no_say(width):
    model, _, values, observed = started(width)
    noise, other = latent_noise(model, 4), torch.where(observed, values, 1e3)
    stir(model)
    with torch.no_grad():
        one, same = (model.importance_samples(x, observed, noise) for x in (values, other))
        torch.testing.assert_close(one, same)
        one, same = (model.loss(Batch(x, observed), 2, make_generator(3)) for x in (values, other))
    torch.testing.assert_close(one, same)


@WIDTHS
def test_a_loss_comes_from_the_generator_alone(width):
    model, _, values, observed = started(width, dropout=0.2)
    state = torch.get_rng_state()
    stir(model)
    with torch.no_grad():
        (stage,) = model.train().stages()
        once, again, other = (stage.loss(Batch(values, observed), 2, make_generator(seed)) for seed in (0, 0, 1))
    assert once.shape == (M, B)
    assert once.isfinite().all()
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state())


@WIDTHS
def test_every_parameter_learns_and_members_do_not_touch_each_other(width):
    model, _, values, observed = started(width)
    (stage,) = model.stages()
    assert sorted(map(id, stage.parameters)) == sorted(map(id, model.parameters()))
    stir(model)
    loss = stage.loss(Batch(values, observed), 2, make_generator(0))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
    assert [name for name, gradient in zip(names, gradients, strict=True) if not gradient.any()] == []
    of_first = torch.autograd.grad(loss[0].sum(), parameters)
    assert [name for name, gradient in zip(names, of_first, strict=True) if gradient[1].any()] == []


def test_the_linear_vae_it_starts_from_stands_still():
    model, backbone, _, _ = started(16)
    assert not {"W", "b", "psi"} & {name for name, _ in model.named_parameters()}
    stir(model)
    for ours, theirs in zip(model.backbone, backbone, strict=True):
        assert torch.equal(ours, theirs)
