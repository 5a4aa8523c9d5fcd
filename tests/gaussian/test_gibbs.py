"""The chain of parameters: closed forms where a model has no latents, or as many as its covariance needs."""

from __future__ import annotations

import pytest
import torch
from toy import F64, RandomTensors, factor_analysis, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, posterior
from vaeimpute.gaussian.gibbs import _draw_latent_root, average, draw_latents, draw_parameters
from vaeimpute.training.runtime import make_generator


def chain(values, observed, start, n_draws, seed=0, floor=1e-3, n_between=2):
    floor = torch.full_like(start.psi, floor)
    options = {"n_warm_up": 20, "n_between": n_between}
    return draw_parameters(values, observed, start, floor, n_draws, make_generator(seed), **options)[0]


def covariances(draws):
    return draws.W @ draws.W.transpose(-1, -2) + torch.diag_embed(draws.psi)


@pytest.mark.parametrize("missing", [0, 12])
def test_without_latents_offsets_are_students_and_variances_inverse_gamma(missing):
    """Of n observed cells with sum of squares S and a pseudo-row f: ``t_n`` and ``IG(n / 2, (S + f) / 2)``.

    Missing cells are drawn and tell nothing: n counts the observed ones.
    """
    n_rows, n_columns, floor, n_draws = 30, 200, 0.5, 150
    values = RandomTensors().normal(n_rows, n_columns)
    observed = torch.ones_like(values, dtype=torch.bool)
    observed[:missing] = False
    n, seen = n_rows - missing, values[missing:]
    values[missing:] = 3 + (seen - seen.mean(0)) / seen.std(0, correction=0)  # the same posterior in all columns
    start = FactorAnalysis(values.new_zeros(n_columns, 0), values.new_zeros(n_columns), values.new_ones(n_columns))
    draws = chain(torch.where(observed, values, 0), observed, start, n_draws, floor=floor, n_between=4)
    total = n + floor
    cells = (n_columns * n_draws) ** 0.5  # nearly independent ones, whose means are known to some 1 / cells
    sd = (total / (n * (n - 2))) ** 0.5
    assert draws.b.mean().item() == pytest.approx(3, abs=5 * sd / cells)
    assert (draws.b - 3).square().mean().sqrt().item() == pytest.approx(sd, rel=5 / cells)
    mean, relative = total / (n - 2), (2 / (n - 4)) ** 0.5
    assert draws.psi.mean().item() == pytest.approx(mean, rel=5 * relative / cells)
    assert (draws.psi.std() / mean).item() == pytest.approx(relative, rel=0.05)


def test_as_many_parameters_as_covariances_have_the_posterior_of_a_free_covariance():
    """Three columns of one factor. Posterior sd of ``s_ij``: the root of ``(s_ij^2 + s_ii s_jj) / n`` (Wishart)."""
    n, truth = 600, factor_analysis(3, 1)
    values, _ = rows_of(truth, n)
    draws = covariances(chain(values, torch.ones_like(values, dtype=torch.bool), truth, 500))
    s = values.T.cov()
    sd = ((s.square() + s.diagonal().outer(s.diagonal())) / n).sqrt()
    assert ((draws.mean(0) - s).abs() < 0.35 * sd).all()  # the chain's error, and the prior's pull
    torch.testing.assert_close(draws.std(0), sd, rtol=0.2, atol=0)


def test_with_missing_cells_the_truth_is_as_far_off_as_the_posterior_says():
    truth, far = factor_analysis(5, 2), []
    for seed in range(4):
        values, observed = rows_of(truth, 300, missing=0.3, seed=seed)
        draws = covariances(chain(torch.where(observed, values, 0), observed, truth, 100, seed))
        far.append((draws.mean(0) - covariances(truth)) / draws.std(0))
    rows, columns = torch.triu_indices(5, 5)
    assert 0.6 < torch.stack(far)[:, rows, columns].square().mean().sqrt() < 1.4


def test_a_latents_covariance_is_inverse_wishart():
    """Given n latents and L + 2 degrees of freedom its mean is ``(Z'Z + I) / n``."""
    z = RandomTensors().normal(40, 3) @ RandomTensors(1).normal(3, 3)
    z1 = torch.cat([z, torch.ones(40, 1, dtype=F64)], 1)
    generator = make_generator(0)
    roots = torch.stack([_draw_latent_root(z1.T @ z1, generator) for _ in range(3000)])
    expected = (z.T @ z + torch.eye(3, dtype=F64)) / 40
    error = (roots @ roots.transpose(1, 2)).mean(0) - expected
    scale = expected.diagonal().outer(expected.diagonal()).sqrt()
    assert (error.abs() < 5 * scale * (2 / 40 / 3000) ** 0.5).all()


def test_no_noise_is_below_the_floor_and_a_chain_keeps_its_shapes():
    values, observed = rows_of(factor_analysis(4, 2), 40, missing=0.3)
    values[:, 1] = 2 * values[:, 0]
    draws = chain(torch.where(observed, values, 0), observed, factor_analysis(4, 2), 7, floor=0.05)
    assert [tuple(part.shape) for part in draws] == [(7, 4, 2), (7, 4), (7, 4)]
    assert (draws.psi >= 0.05).all()


def test_a_chain_comes_from_its_generator_alone():
    values, observed = rows_of(factor_analysis(), 50, missing=0.3)
    state = torch.get_rng_state()
    one, same, other = (chain(values, observed, factor_analysis(), 3, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.W, other.W)
    assert torch.equal(state, torch.get_rng_state())


def test_what_missing_cells_hold_has_no_influence():
    values, observed = rows_of(factor_analysis(), 50, missing=0.3)
    one, same = (chain(x, observed, factor_analysis(), 3) for x in (values, torch.where(observed, values, 9.0)))
    assert torch.equal(one.W, same.W)


# ---- averages ----------------------------------------------------------------------------------------------------


def some_draws(rank, n_draws=5):
    random = RandomTensors()
    return FactorAnalysis(random.normal(n_draws, 4, rank), random.normal(n_draws, 4), random.uniform(n_draws, 4) + 0.1)


def test_an_average_of_enough_latents_has_the_mean_covariance():
    draws = some_draws(4)
    mean = average(draws)
    torch.testing.assert_close(covariances(mean), covariances(draws).mean(0))
    torch.testing.assert_close(mean.b, draws.b.mean(0))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_average_of_few_latents_has_the_mean_variances_and_the_nearest_loadings(rank):
    draws = some_draws(rank)
    mean, expected = average(draws), (draws.W @ draws.W.transpose(1, 2)).mean(0)
    assert mean.rank == rank
    torch.testing.assert_close(covariances(mean).diagonal(), covariances(draws).mean(0).diagonal())
    lost = torch.linalg.eigvalsh(expected)[:-rank]  # Eckart and Young
    assert (mean.W @ mean.W.T - expected).square().sum().item() == pytest.approx(lost.square().sum().item())


def test_an_average_of_one_model_is_that_model():
    truth = factor_analysis()
    mean = average(FactorAnalysis(*(part.expand(3, *part.shape) for part in truth)))
    torch.testing.assert_close(covariances(mean), covariances(truth))


# ---- latents -----------------------------------------------------------------------------------------------------


def test_latents_have_the_mean_and_covariance_of_the_posterior():
    """Noise of mean zero and covariance one, exactly: no Monte Carlo error is left."""
    truth = factor_analysis(6, 3)
    values, observed = rows_of(truth, 9, missing=0.5)
    observed[0], observed[1] = False, True
    noise = torch.linalg.qr(RandomTensors().normal(64, 4).index_fill(1, torch.tensor([0]), 1.0))[0][:, 1:] * 8
    z = draw_latents(values, observed, truth, noise.unsqueeze(1).expand(-1, 9, -1))
    m, chol = posterior(values, observed, truth)
    torch.testing.assert_close(z.mean(0), m)
    centred = z - z.mean(0)
    torch.testing.assert_close(torch.einsum("sbk,sbl->bkl", centred, centred) / 64, torch.cholesky_inverse(chol))
