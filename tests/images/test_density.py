"""The density of images: a dense covariance by hand, p-values of normal images, and defects that excuse nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal
from toy import F64, RandomTensors, factor_analysis, image_tensors, images

from vaeimpute.gaussian.mixture import Mixture
from vaeimpute.images.density import ImageDensity, ImageMixture, fit_density, impute, split
from vaeimpute.images.fit import fit_imputer
from vaeimpute.images.models import ConditionalImageVAE, Sizes
from vaeimpute.training.runtime import make_generator

SHAPE, N_PIXELS = (6, 5, 1), 30
BLOBS = images(1500)  # the first are for the fit
NEW = slice(1000, None)


@pytest.fixture(scope="module")
def model():
    """A conditional model that has learnt a little of blobs: what follows is true of any."""
    models = fit_imputer(image_tensors(BLOBS[:200]), seed=0, dtype=torch.float32, max_iter=30)
    return models.density.model


def fit(model, X, **options):
    data = image_tensors(X)
    return fit_density(model, data, torch.arange(len(X)), seed=0, **options)


@pytest.fixture(scope="module")
def density(model):
    return fit(model, BLOBS[:400])


@pytest.fixture(scope="module")
def new():
    data = image_tensors(BLOBS)
    return data.values[NEW], data.observed[NEW]


def complete(n=5, seed=0):
    return RandomTensors(seed).uniform(n, N_PIXELS, dtype=torch.float32), torch.ones(n, N_PIXELS, dtype=torch.bool)


# ---- images as wholes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand():
    """A mixture of one component whose covariance can be written down: pixels, k latents, noise beyond them."""
    random, k = RandomTensors(), 4
    latents = factor_analysis(k, 2)
    basis, _ = torch.linalg.qr(random.normal(N_PIXELS, k))
    center, unit, noise = random.normal(N_PIXELS), torch.tensor(1.7, dtype=F64), torch.tensor(0.3, dtype=F64)
    component = type(latents)(*(p.view(1, 1, *p.shape) for p in latents))
    rows = ImageMixture(
        Mixture(torch.zeros(1, 1, dtype=F64), component), center=center, basis=basis, unit=unit, noise=noise
    )
    inside = unit**2 * (latents.W @ latents.W.T + latents.psi.diag())
    covariance = basis @ inside @ basis.T + noise * (torch.eye(N_PIXELS, dtype=F64) - basis @ basis.T)
    return rows, MultivariateNormal(center, covariance)


def test_log_likelihood_of_a_whole_image_is_that_of_the_dense_gaussian(by_hand):
    rows, exact = by_hand
    model = ConditionalImageVAE(Sizes(SHAPE, "numeric", 1, (8,), 1, 8, 2, 0.0, False), make_generator(0)).double()
    density = ImageDensity(model, rows)
    values = exact.loc + RandomTensors(1).normal(7, N_PIXELS)
    ours = density.log_likelihood(values, torch.ones_like(values, dtype=torch.bool))
    torch.testing.assert_close(ours, exact.log_prob(values))


def test_parts_are_the_two_halves_of_the_distance(by_hand):
    """What the latents leave is what is orthogonal to them, and only observed pixels count."""
    rows, _ = by_hand
    centred = RandomTensors(1).normal(7, N_PIXELS)
    observed = RandomTensors(2).mask(7, N_PIXELS, rate=0.7)
    orthogonal = centred - centred @ rows.basis @ rows.basis.T
    likelihood, left = rows.parts(rows.center + centred, observed)
    torch.testing.assert_close(left, (orthogonal.square() * observed).sum(1))
    moved, _ = rows.parts(rows.center + centred - 2 * orthogonal, observed)
    torch.testing.assert_close(moved, likelihood)  # the latents are the same


@pytest.mark.parametrize("n", [20, 60, 200, 400, 1000])
def test_p_values_of_normal_images_are_uniform(model, new, n):
    """Of images that it has not seen it flags 5%, however few it has seen: 20 of them give p-values in steps of 5%."""
    levels = (0.05, 0.1, 0.2, 0.5)
    p = fit(model, BLOBS[:n]).p_values(*new)
    for level in levels:
        # Conformal: the share below a level varies as Beta(n level, n (1 - level)), besides the sampling of new images.
        sigma = math.sqrt(level * (1 - level) * (1 / n + 1 / len(p)))
        assert abs((p <= level).mean() - level) < 3.5 * sigma + 1 / n


def test_the_negative_of_an_image_is_an_outlier(density, new):
    values, observed = new
    normal, negative = (density.anomaly_score(x, observed) for x in (values, torch.where(observed, 1 - values, 0)))
    # Beyond all reference images: minus the log of the share that is at least as anomalous, exponential in the tail.
    assert np.median(negative) > math.log(400)
    assert negative.min() > np.median(normal)


def test_missing_pixels_do_not_make_an_image_anomalous(density, new):
    values, observed = new
    half = observed.clone()
    half[:, :15] = False
    assert (density.p_values(torch.where(half, values, 0), half) <= 0.05).mean() < 0.2
    nothing = density.anomaly_score(0 * values[:1], observed[:1] & False)
    assert nothing < np.quantile(density.anomaly_score(values, observed), 0.95)


@pytest.mark.parametrize("seed", [0, 1])
def test_trimmed_fits_find_the_outliers_among_their_own_images(model, seed):
    """A tenth are negatives: they rank before all others, though they are like one another."""
    X = BLOBS[1000 * seed : 1000 * seed + 400].copy()
    X[:40] = 16 - X[:40]
    data = image_tensors(X)
    robust = fit_density(model, data, torch.arange(400), seed=seed, robust=True)
    score = robust.anomaly_score(data.values, data.observed)
    assert (np.argsort(-score)[:40] < 40).mean() > 0.9


def test_images_that_only_tell_are_others_than_those_of_the_fit():
    fitted, held = split(100, seed=0)
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(100))
    assert len(held) == 20
    assert not torch.equal(held, split(100, seed=1)[1])
    assert len(split(10**5, seed=0)[1]) == 1000
    fitted, held = split(5, seed=0)
    assert sorted(fitted.tolist()) == sorted(held.tolist()) == list(range(5))


def test_missing_pixels_are_filled_by_the_model_and_others_stay(model, new):
    values, observed = (part[:20] for part in new)
    before = values.clone()
    filled = impute(model, values, observed)
    assert torch.equal(values, before)
    assert torch.equal(filled[observed], values[observed])
    one = impute(model, values[[3]], observed[[3]])
    torch.testing.assert_close(one[0], filled[3], rtol=0, atol=1e-5)


# ---- pixels ------------------------------------------------------------------------------------------------------


def test_a_pixel_is_expected_without_its_own_tile(density):
    """Tiles of three by three pixels: what stands in one changes what is expected in the others, not in itself."""
    values, observed = complete()
    other = values.clone()
    tile = torch.zeros(6, 5, dtype=torch.bool)
    tile[:3, :3] = True
    tile = tile.flatten()
    other[:, tile] = values[:, tile] * 0.9  # a little: a pixel that is taken for wrong is hidden from all
    nothing_is_wrong = ImageDensity(density.model, density.rows, baseline=torch.full((N_PIXELS,), 1e3))
    one, two = (nothing_is_wrong.predict_cells(x, observed).expected for x in (values, other))
    assert torch.equal(one[:, tile], two[:, tile])
    assert (one[:, ~tile] != two[:, ~tile]).any(1).all()


def test_what_is_taken_for_wrong_is_hidden_from_all(density):
    """As if it were missing, so that a defect does not excuse its neighbours."""
    values, observed = complete()
    baseline = torch.full((N_PIXELS,), 1e3)
    baseline[7] = -1e3  # whatever stands there is wrong, and nothing else is
    strict = ImageDensity(density.model, density.rows, baseline=baseline)
    pred = strict.predict_cells(values, observed)
    wrong = torch.arange(N_PIXELS) == 7
    assert torch.equal(pred.log_odds > 0, wrong.expand_as(observed))
    without = strict.predict_cells(values, observed & ~wrong)
    torch.testing.assert_close(pred.expected, without.expected)
    torch.testing.assert_close(pred.scores[:, ~wrong], without.scores[:, ~wrong])


def test_scores_of_normal_pixels_are_the_reference(model):
    """Surprisal is minus the log of a share: up to the tail, e^-s of the reference have at least s."""
    data = image_tensors(BLOBS[:100])
    density = fit_density(model, data, torch.arange(100), seed=0)
    score = density.cell_anomaly_score(data.values, data.observed)[data.observed].numpy()
    for s in (1.0, 2.0, 2.9):
        assert (score >= s).mean() == pytest.approx(math.exp(-s), rel=0.1)


def test_scores_do_not_depend_on_the_order_of_the_images(model):
    """Of sorted images the first hundred say little of the others."""
    X = BLOBS[:240]
    X = X[np.argsort(np.nanmean(X, (1, 2)))]
    data = image_tensors(X)
    density = fit_density(model, data, torch.arange(240), seed=0)
    scores = density.cell_anomaly_score(data.values, data.observed)
    first, last = (scores[part][data.observed[part]].mean() for part in (slice(100), slice(140, None)))
    assert abs(first - last) < 0.5
