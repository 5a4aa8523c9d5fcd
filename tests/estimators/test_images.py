"""Images: pixels as columns of the same two estimators."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from vaeimpute import VAEImputer, VAEOutlierDetector

SIDE = 6  # of what is cut out of the digits: a training is twice as fast as on all of their pixels
SHAPE, N_PIXELS = (SIDE, SIDE), SIDE**2
NEW = slice(1000, 1040)


def short(max_iter=4, **params):
    """An imputer whose training says little, for what holds of any."""
    return VAEImputer(**{"image_shape": SHAPE, "random_state": 0, "max_iter": max_iter, **params})


def shuffled_digits():
    X = load_digits().images.astype(np.uint8)
    return X[np.random.default_rng(0).permutation(len(X))]


@pytest.fixture(scope="module")
def digits():
    """Their middle, where the ink is."""
    return shuffled_digits()[:, 1:7, 1:7]


@pytest.fixture(scope="module")
def edges():
    """With the left edge, where there is none."""
    return shuffled_digits()[:, 1:7, :6]


@pytest.fixture(scope="module")
def imputer(digits):
    return short(100).fit(digits[:400])


@pytest.fixture(scope="module")
def detector(edges):
    return VAEOutlierDetector(image_shape=SHAPE, random_state=0).fit(edges[:400])


@pytest.fixture(scope="module")
def incomplete(digits):
    X = digits[NEW].astype(float)
    X[np.random.default_rng(1).random(X.shape) < 0.5] = np.nan
    return X


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (np.zeros((3, 8, 6)), ValueError, r"X has shape \(3, 8, 6\).*\(n, 8, 8\), \(n, 8, 8, 1\) or \(n, 64\)"),
        (np.zeros((3, 8, 8, 3)), ValueError, "with 1 channel have"),
        (np.zeros(64), ValueError, "X has shape"),
        (np.full((2, 8, 8), np.nan), ValueError, "no observed pixel"),
        (np.full((2, 8, 8), np.inf), ValueError, r"infinity in image 0, pixel \(0, 0\)"),
        (np.full((2, 8, 8), "a"), TypeError, "Pixels must be numbers"),
        (np.zeros((2, 8, 8), complex), (TypeError, ValueError), "(?i)complex"),
    ],
)
def test_bad_images_are_refused(X, error, match):
    for estimator in (VAEImputer(image_shape=(8, 8)), VAEOutlierDetector(image_shape=(8, 8))):
        with pytest.raises(error, match=match):
            estimator.fit(X)
        assert not hasattr(estimator, "encoder_")


def test_kinds_of_images_are_one_word(digits):
    with pytest.raises(ValueError, match="one of"):
        short(kinds={"x0": "count"}).fit(digits[:5])
    with pytest.raises(ValueError, match="must be a dict"):
        VAEImputer(kinds="count").fit([[1.0, 2.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="two values"):
        short(kinds="boolean").fit(digits[:5])
    with pytest.raises(TypeError, match="missing_values='x'"):
        short(missing_values="x").fit(digits[:5])


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (np.ma.masked_less(np.ones((2, *SHAPE)), 2), TypeError, "masked array"),
        (np.zeros((0, *SHAPE)), ValueError, "0 sample"),
        (np.zeros((2, 9, SIDE)), ValueError, "X has shape"),
        (np.zeros((2, *SHAPE, 3)), ValueError, "X has shape"),
        (np.zeros((2, N_PIXELS - 1)), ValueError, "X has shape"),
    ],
)
def test_what_cannot_be_filled(imputer, X, error, match):
    with pytest.raises(error, match=match):
        imputer.impute(X)


def test_a_third_value_of_binary_pixels_is_refused(digits):
    imputer = short().fit(digits[:40] > 7)
    with pytest.raises(ValueError, match=r"X holds 2 in image 0, pixel \(1, 4\)"):
        imputer.impute(np.where(np.arange(N_PIXELS).reshape(1, *SHAPE) == 10, 2, 0))


# --- the imputer ------------------------------------------------------------------------------------------------------


def test_imputed_pixels_are_better_than_means(imputer, digits, incomplete):
    truth, hidden = digits[NEW].astype(float), np.isnan(incomplete)
    filled = imputer.impute(incomplete)
    assert_array_equal(filled[~hidden], incomplete[~hidden])
    means = np.broadcast_to(digits[:400].mean(0), incomplete.shape)
    assert np.square(filled - truth)[hidden].mean() < 0.7 * np.square(means - truth)[hidden].mean()
    assert filled.min() >= 0
    assert filled.max() <= 16


def test_the_layout_makes_no_difference(imputer, incomplete):
    filled = imputer.impute(incomplete)
    flat = incomplete.reshape(40, N_PIXELS)
    assert_array_equal(imputer.impute(flat), filled.reshape(40, N_PIXELS))
    assert_array_equal(imputer.impute(incomplete[..., None]), filled[..., None])
    assert_array_equal(imputer.transform(incomplete), filled)
    assert imputer.set_output(transform="default").transform(flat).shape == (40, N_PIXELS)


def test_an_image_alone_gets_the_same(imputer, incomplete):
    assert_allclose(imputer.impute(incomplete[:1]), imputer.impute(incomplete)[:1], atol=1e-4)
    assert_allclose(imputer.anomaly_score(incomplete[:1]), imputer.anomaly_score(incomplete)[:1], atol=1e-4)


def test_draws_differ_and_are_levels(imputer, incomplete):
    state = torch.random.get_rng_state()
    draws = imputer.impute(incomplete, n_imputations=3, random_state=0)
    again = imputer.impute(incomplete, n_imputations=3, random_state=0)
    assert torch.equal(state, torch.random.get_rng_state())
    hidden = np.isnan(incomplete)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))
    assert (draws[0] != draws[1])[hidden].mean() > 0.1
    for draw in draws:
        assert_array_equal(draw[~hidden], incomplete[~hidden])
        assert_allclose(draw, draw.round(), atol=1e-4)


def test_samples_and_latents(imputer, incomplete):
    sampled = imputer.sample(5, random_state=0)
    assert sampled.shape == (5, *SHAPE)
    assert sampled.dtype == np.uint8
    assert sampled.max() <= 16
    assert imputer.sample(2, given=incomplete[:3], random_state=0).shape == (6, *SHAPE)
    latent = imputer.encode(incomplete)
    assert latent.shape == (40, imputer.ensemble_.joint.n_latent)
    assert imputer.decode(latent).shape == (40, *SHAPE)
    assert np.isfinite(imputer.log_likelihood(incomplete)).all()
    assert imputer.score(incomplete) == pytest.approx(imputer.log_likelihood(incomplete).mean())


def test_scores_of_rows_and_pixels(imputer, incomplete):
    """In nats: an image with a negative half is at least e times as rare."""
    outlying = incomplete.copy()
    outlying[:, :, 3:] = 16 - incomplete[:, :, 3:]
    assert imputer.anomaly_score(outlying).mean() > imputer.anomaly_score(incomplete).mean() + 1
    cells = imputer.cell_anomaly_score(outlying)
    assert_array_equal(np.isnan(cells), np.isnan(outlying))
    assert np.nanmean(cells[:, :, 3:]) > np.nanmean(imputer.cell_anomaly_score(incomplete)[:, :, 3:])


def test_edges_of_the_input(imputer, digits, incomplete):
    complete = digits[:3]
    assert_array_equal(imputer.impute(complete), complete)
    one = np.full((1, *SHAPE), np.nan)
    one[0, 4, 4] = 16
    assert np.isfinite(imputer.impute(one)).all()
    assert np.isfinite(imputer.impute(np.full((1, *SHAPE), np.nan))).all()
    assert np.isfinite(imputer.impute(np.where(np.isnan(incomplete), np.nan, 0.0))).all()
    before = incomplete.copy()
    imputer.impute(incomplete)
    assert_array_equal(incomplete, before)


def test_medians(imputer, incomplete):
    median = imputer.set_params(point="median").impute(incomplete[:5])
    imputer.set_params(point="mean")
    seen = ~np.isnan(incomplete[:5])
    assert_array_equal(median[seen], incomplete[:5][seen])
    assert_allclose(median, median.round(), atol=1e-4)  # a draw is a level, and so is their median


def test_saved_and_pickled(imputer, incomplete, tmp_path):
    imputer.save(tmp_path / "m.safetensors")
    for again in (VAEImputer.load(tmp_path / "m.safetensors"), pickle.loads(pickle.dumps(imputer))):
        assert again.image_shape == SHAPE
        assert again.n_iter_ == imputer.n_iter_
        assert_array_equal(again.impute(incomplete), imputer.impute(incomplete))
        assert_array_equal(again.anomaly_score(incomplete), imputer.anomaly_score(incomplete))
        assert_array_equal(again.sample(2, random_state=1), imputer.sample(2, random_state=1))


@pytest.mark.parametrize("max_iter", [1, 3])
def test_no_more_steps_than_max_iter(digits, max_iter):
    assert short(max_iter).fit(digits[:40]).n_iter_ == max_iter


@pytest.mark.parametrize("n", [1, 2, 12])
def test_few_images(n, digits):
    X = digits[:n].astype(float)
    X[0, 2:4] = np.nan
    filled = short().fit(X).impute(X)
    assert np.isfinite(filled).all()
    assert filled.max() <= 16


def test_black_images():
    X = np.zeros((30, *SHAPE), dtype=np.uint8)
    incomplete = X.astype(float)
    incomplete[:, 1] = np.nan
    assert_array_equal(short().fit(X).impute(incomplete), 0.0)


@pytest.mark.parametrize("kind", ["boolean", "numeric"])
def test_binary_and_real_pixels_come_back_as_they_are(kind, digits):
    X = digits[:40] > 7 if kind == "boolean" else digits[:40] + np.random.default_rng(0).normal(size=(40, *SHAPE))
    incomplete = X.astype(float)
    incomplete[:, 2:4, 2:6] = np.nan
    imputer = short().fit(X)
    filled = imputer.impute(incomplete)
    assert imputer.encoder_.kind == kind
    assert set(np.unique(filled)) <= {0.0, 1.0} if kind == "boolean" else np.isfinite(filled).all()
    assert imputer.sample(3, random_state=0).dtype == X.dtype


def test_networks_mlp_takes_pixels_as_columns(digits, incomplete):
    imputer = short(6, networks="mlp").fit(digits[:80])
    filled = imputer.impute(incomplete)
    truth, hidden = digits[NEW], np.isnan(incomplete)
    means = np.broadcast_to(digits[:80].mean(0), incomplete.shape)
    assert np.square(filled - truth)[hidden].mean() < np.square(means - truth)[hidden].mean()
    assert imputer.anomaly_score(incomplete).shape == (40,)


def test_networks_mlp_leaves_pixels_that_it_never_saw(digits):
    X = digits[:30].astype(float)
    X[:, 0, 3] = np.nan
    with pytest.warns(UserWarning, match=r"Pixels without any observed value are not modelled: 1\."):
        imputer = short(networks="mlp").fit(X)
    X[:, 4, 4] = np.nan
    assert_array_equal(np.isnan(imputer.transform(X)).sum(0), 30 * np.eye(N_PIXELS)[3].reshape(SHAPE))


def test_memory_mapped_images(digits, tmp_path):
    np.save(tmp_path / "x.npy", digits[:60])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = short().fit(mapped)
    b = short().fit(digits[:60])
    incomplete = np.where(np.arange(N_PIXELS).reshape(SHAPE) % 3 == 0, np.nan, digits[90:95])
    assert_array_equal(a.impute(incomplete), b.impute(incomplete))


def test_in_a_pipeline(digits):
    X = digits[:60].reshape(60, N_PIXELS).astype(float)
    X[::2, 10:20] = np.nan
    step = short(add_indicator=True)
    pipeline = make_pipeline(step, MinMaxScaler())
    out = pipeline.fit_transform(X)
    assert out.shape == (60, N_PIXELS + 10)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="add_indicator"):
        pipeline[0].transform(X.reshape(60, *SHAPE))


def test_what_is_filled_in_is_not_missing(digits):
    imputer = short(missing_values=8).fit(digits[:60])
    assert not (imputer.impute(digits[:60]) == 8).any()
    assert not (imputer.sample(20, random_state=0) == 8).any()


def test_ctrl_c_is_told(digits, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupt)
    for estimator in (VAEImputer(image_shape=SHAPE), VAEOutlierDetector(image_shape=SHAPE)):
        with pytest.warns(UserWarning, match="interrupted"):
            estimator.fit(digits[:50])


# --- the detector: its training is long, and one fit goes for all -----------------------------------------------------


@pytest.mark.slow
def test_negatives_are_found(detector, edges):
    normal = edges[1000:1200]
    negatives = np.ascontiguousarray(16 - normal)
    assert detector.anomaly_score(negatives).min() > np.median(detector.anomaly_score(normal))
    assert (detector.predict(negatives) == -1).mean() > 0.95
    assert_array_equal(detector.score_samples(normal), -detector.anomaly_score(normal))
    selected = detector.select(np.concatenate([normal, negatives[:50]]))
    assert selected[200:].mean() > 0.8
    assert selected[:200].sum() <= 0.2 * selected.sum()  # 10% are expected


@pytest.mark.slow
def test_p_values_of_normal_images_are_uniform(detector, edges):
    """What it flags of images that it has not seen is about 5%."""
    new = edges[400:]
    p = detector.p_values(new)
    for level in (0.05, 0.1, 0.5):
        sigma = np.sqrt(level * (1 - level) * (1 / 400 + 1 / len(new)))
        assert abs((p <= level).mean() - level) < 3.5 * sigma
    assert (detector.predict(new) == -1).mean() == pytest.approx(0.05, abs=0.04)


@pytest.mark.slow
def test_missing_pixels_do_not_make_an_image_anomalous(detector, edges):
    X = edges[1000:1200].astype(float)
    X[:, :3] = np.nan
    assert (detector.predict(X) == -1).mean() < 0.2
    nothing = detector.anomaly_score(np.full((1, *SHAPE), np.nan))
    assert np.quantile(detector.anomaly_score(edges[1000:1200]), 0.95) > nothing


@pytest.mark.slow
def test_a_defect_is_seen_and_repaired(detector, edges):
    normal = edges[1000:1100]
    defect = normal.copy()
    defect[:, 0:2, 0:2] = 16
    scores = detector.cell_anomaly_score(defect)
    assert scores.shape == (100, *SHAPE)
    assert np.median(scores[:, 0:2, 0:2].mean((1, 2)) - scores[:, 2:, 2:].mean((1, 2))) > 3
    repaired = detector.repair(defect)
    assert repaired.dtype == np.uint8
    wrong = defect.astype(float) - normal
    left = repaired.astype(float) - normal
    assert np.abs(left)[:, 0:2, 0:2].mean() < 0.3 * np.abs(wrong)[:, 0:2, 0:2].mean()
    table = detector.explain(defect[:2], n_cells=2)
    assert list(table["column"].str[0]) == ["["] * 4


@pytest.mark.slow
def test_the_detector_is_kept(detector, edges, tmp_path):
    X = edges[1000:1020]
    detector.save(tmp_path / "d.safetensors")
    for again in (VAEOutlierDetector.load(tmp_path / "d.safetensors"), pickle.loads(pickle.dumps(detector))):
        assert_array_equal(again.anomaly_score(X), detector.anomaly_score(X))
        assert_array_equal(again.cell_anomaly_score(X), detector.cell_anomaly_score(X))
        assert_array_equal(again.log_likelihood(X), detector.log_likelihood(X))


@pytest.mark.slow
def test_a_picture_of_the_most_anomalous(detector, edges):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = detector.plot(edges[1000:1030], n_rows=4)
    assert len(ax.get_xticks()) == 4
    assert len(ax.images) == 2
    pyplot.close(ax.figure)


@pytest.mark.gpu
def test_images_on_a_gpu(digits):
    imputer = short(60, device="cuda").fit(digits[:300])
    assert np.isfinite(imputer.impute(np.where(digits[:20] > 12, np.nan, digits[:20].astype(float)))).all()
