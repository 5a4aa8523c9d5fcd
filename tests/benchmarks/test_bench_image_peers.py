"""benchmarks.image_peers: every peer fills what it should, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from bench_toys import blobs, stripes

pytest.importorskip("skimage")

from benchmarks import images
from benchmarks.image_peers import DETECTORS, PEERS
from benchmarks.image_sets import MASKS, hide_pixels, observed_pixels

OTHERS = [name for name in PEERS if name != "vaeimpute"]
SHORT = {"conv-ae": {"steps": 20}, "unet": {"steps": 20}}


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_peers_inpaint_what_is_missing_and_nothing_else(name, channels):
    train, test = blobs(80, channels=channels), blobs(6, channels=channels, seed=1)
    if test[0].size > PEERS[name].max_pixels:
        pytest.skip("not for images of this size")
    inpaint = PEERS[name].fit(train, 0, **SHORT.get(name, {}))
    for mask in MASKS:
        observed = observed_pixels("toy", mask, 0, test)
        filled = inpaint(hide_pixels(test, observed))
        assert filled.shape == test.shape
        np.testing.assert_allclose(filled[observed], test[observed], atol=1e-3)
        assert np.isfinite(filled).all()


def test_knn_finds_the_same_image():
    train = blobs(40)
    observed = observed_pixels("toy", "scattered-50", 0, train)
    filled = PEERS["knn"].fit(train, 0, k=1)(hide_pixels(train, observed))
    assert np.abs(filled - train).mean() < 0.1  # two blobs may agree in all that is observed


def test_ppca_is_the_gaussian_conditional_mean():
    """Against the textbook formula on the model's own covariance."""
    rng = np.random.default_rng(0)
    train = (rng.standard_normal((500, 3)) @ rng.standard_normal((3, 16)) + rng.standard_normal((500, 16))).reshape(
        500, 4, 4
    )
    row = train[:1].copy()
    hidden = np.arange(16) < 5
    row.reshape(-1)[hidden] = np.nan
    pred = PEERS["ppca"].fit(train, 0, n_factors=3)(row).reshape(-1)[hidden]
    values, vectors = np.linalg.eigh(np.cov(train.reshape(500, 16).T))
    noise = values[:-3].mean()
    covariance = vectors[:, -3:] @ np.diag(values[-3:] - noise) @ vectors[:, -3:].T + noise * np.eye(16)
    mean, kept = train.reshape(500, 16).mean(0), ~hidden
    gain = covariance[np.ix_(hidden, kept)] @ np.linalg.inv(covariance[np.ix_(kept, kept)])
    np.testing.assert_allclose(pred, mean[hidden] + gain @ (row.reshape(-1) - mean)[kept], atol=1e-4)


@pytest.mark.parametrize("name", ["conv-ae", "unet"])
def test_networks_learn_and_repeat(name):
    train, test = blobs(200), blobs(50, seed=1)
    observed = observed_pixels("toy", "centre-block", 0, test)
    incomplete = hide_pixels(test, observed)
    short = [PEERS[name].fit(train, 0, steps=10)(incomplete) for _ in range(2)]
    np.testing.assert_array_equal(*short)
    filled = PEERS[name].fit(train, 0, steps=300)(incomplete)
    error = images.judge(test, filled, observed, 16)["rmse"]
    assert error < 0.8 * images.judge(test, PEERS["mean"].fit(train, 0)(incomplete), observed, 16)["rmse"]


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "vaeimpute"])
def test_detectors_tell_stripes_from_blobs(name):
    scores = DETECTORS[name](blobs(200), 0)(np.concatenate([blobs(20, seed=1), stripes(20)]))
    assert scores.shape == (40,)
    assert scores[20:].min() > np.median(scores[:20])
