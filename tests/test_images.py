"""Images: pixels as columns of the same two estimators."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from vaeimpute import VAEImputer, VAEOutlierDetector
from vaeimpute.images import encoder as encoding
from vaeimpute.images import fit as fitting
from vaeimpute.images.encoder import ImageEncoder, pixel_shape
from vaeimpute.images.inpainting import smoothest
from vaeimpute.images.models import ConditionalImageVAE, ImageConfig, JointImageVAE, shown
from vaeimpute.images.networks import Painter, Seer, map_sizes, stride
from vaeimpute.likelihoods.pixels import PIXELS, Pixels

SHAPES = [(8, 8, 1), (28, 28, 1), (9, 17, 3), (50, 33, 1), (64, 128, 3)]


def small(shape, kind="count", n_levels=16):
    return ImageConfig(shape, kind, n_levels, (8, 16), 1, 16, 4, 0.1, smooth=True)


@pytest.fixture(scope="module")
def digits():
    X = load_digits().images.astype(np.uint8)
    return X[np.random.default_rng(0).permutation(len(X))]


@pytest.fixture(scope="module")
def imputer(digits, short):
    return VAEImputer(image_shape=(8, 8), random_state=0).fit(digits[:600])


@pytest.fixture(scope="module")
def detector(digits, short):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_FEWEST_STEPS", 250)
        return VAEOutlierDetector(image_shape=(8, 8), random_state=0).fit(digits[:900])


@pytest.fixture(scope="module")
def holed(digits):
    X = digits[1000:1040].astype(float)
    X[np.random.default_rng(1).random(X.shape) < 0.5] = np.nan
    return X


# --- layouts and pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [(7, 48), (7, 8, 6), (7, 8, 6, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_every_layout_and_dtype_comes_back(layout, dtype):
    X = np.random.default_rng(0).integers(0, 256, layout).astype(dtype)
    encoder = ImageEncoder.fit(X, (8, 6, 1))
    values, observed = encoder.encode(X)
    assert encoder.kind == "count"
    assert values.shape == (7, 48)
    assert observed.all()
    for back in (encoder.build(values), encoder.fill(X, values, ~observed)):
        assert back.shape == X.shape
        assert back.dtype == X.dtype
        assert_allclose(back, X, atol=1e-4)


@pytest.mark.parametrize(
    ("X", "kind", "n_levels"),
    [
        (np.array([[0, 255, 7, 3]], np.uint8), "count", 255),
        (np.array([[0, 16, 7, 3]]), "count", 16),
        (np.array([[0, 255, 7, 3]]) / 255, "count", 255),
        (np.array([[0, 16, 7, 3]]) / 16, "count", 16),
        (np.array([[0, 255, 255, 0]]), "boolean", 1),
        (np.array([[True, False, True, False]]), "boolean", 1),
        (np.array([[0.1, 0.7, -0.3, 2.5]]), "numeric", 1),
        (np.array([[0, 65_000, 3, 9]], np.uint16), "numeric", 1),
    ],
)
def test_what_pixels_are_is_seen(X, kind, n_levels):
    encoder = ImageEncoder.fit(X, (2, 2, 1))
    assert (encoder.kind, encoder.n_levels) == (kind, n_levels)
    assert_allclose(encoder.build(encoder.encode(X)[0]).astype(float), X.astype(float), rtol=1e-5, atol=1e-5)
    assert ImageEncoder.from_json(encoder.to_json()) == encoder


def test_a_pixel_can_mean_missing():
    X = np.array([[0, 9, 255, 3]], dtype=np.uint8)
    _, observed = ImageEncoder.fit(X, (2, 2, 1), missing_values=255).encode(X)
    assert_array_equal(observed, [[True, True, False, True]])


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


@pytest.mark.parametrize("shape", [(8,), (8, 0), (8, 8, 1, 1), (8.5, 2), ("a", "b")])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="image_shape must be"):
        pixel_shape(shape)


def test_kinds_of_images_are_one_word(digits):
    with pytest.raises(ValueError, match="one of"):
        VAEImputer(image_shape=(8, 8), kinds={"x0": "count"}).fit(digits[:5])
    with pytest.raises(ValueError, match="must be a dict"):
        VAEImputer(kinds="count").fit([[1.0, 2.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="two values"):
        VAEImputer(image_shape=(8, 8), kinds="boolean").fit(digits[:5])


@pytest.mark.parametrize("kind", PIXELS)
def test_pixel_likelihoods_are_distributions(kind):
    """Probabilities add up to one; the mean and the draws are those of the likelihood."""
    torch.manual_seed(0)
    pixels = Pixels(kind, 1, 16)
    params = torch.randn(3, pixels.n_params, dtype=torch.float64)
    if kind == "numeric":
        support = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
        weight = support[1] - support[0]
    else:
        support = torch.linspace(0, 1, 2 if kind == "boolean" else 17, dtype=torch.float64)
        weight = torch.tensor(1.0)
    p = pixels.log_prob(params.unsqueeze(1), support[None, :, None]).squeeze(-1).exp() * weight
    assert_allclose(p.sum(1), 1, atol=1e-6)
    below = pixels.cdf(params.unsqueeze(1), support[None, :, None] + 1e-9).squeeze(-1)
    assert_allclose(below, p.cumsum(1), atol=1e-3)
    mean = (p * support).sum(1)
    assert_allclose(pixels.answers(params).squeeze(-1), mean, atol=1e-6 if kind != "count" else 0.01)
    drawn = pixels.sample(params.expand(20_000, 3, -1)).squeeze(-1)
    assert_allclose(drawn.mean(0), mean, atol=0.03 * (1 + drawn.std()))


@given(st.integers(0, 255), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_levels_far_from_the_mean_keep_a_finite_likelihood(level, seed):
    params = 30 * torch.randn(1, 9, generator=torch.Generator().manual_seed(seed))
    params.requires_grad_()
    log_p = Pixels("count", 1, 255).log_prob(params, torch.tensor([[level / 255]]))
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert log_p.item() <= 1e-5
    assert params.grad.isfinite().all()


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [JointImageVAE, ConditionalImageVAE])
def test_any_size_works(shape, kind):
    torch.manual_seed(0)
    model = kind(small(shape))
    n_pixels = int(np.prod(shape))
    x = torch.randint(0, 17, (1, 2, n_pixels)) / 16
    observed = torch.rand(1, 2, n_pixels) < 0.7
    loss = model.loss(x, observed, 1)
    assert loss.shape == (1, 2)
    assert loss.isfinite().all()
    loss.sum().backward()
    with torch.no_grad():
        params, log_w = model.eval().draws(x, observed, torch.zeros(3, 4))
    assert params.shape == (1, 3, 2, model.likelihoods.n_params)
    assert log_w.shape == (1, 3, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_pixels_have_no_say(shape):
    torch.manual_seed(0)
    n_pixels = int(np.prod(shape))
    observed = torch.rand(1, 2, n_pixels) < 0.6
    x = torch.rand(1, 2, n_pixels)
    other = torch.where(observed, x, torch.rand_like(x))
    for kind in (JointImageVAE, ConditionalImageVAE):
        model = kind(small(shape)).eval()
        for p in model.parameters():
            p.data.normal_(std=0.1)
        with torch.no_grad():
            a, b = (model.answers(v, observed, torch.zeros(1, 4)) for v in (x, other))
        assert torch.equal(a, b)


def test_the_smoothest_image_goes_through_what_is_known():
    """Known pixels stay; planes and images of one colour are found again; a start is never NaN."""
    row, column, _ = torch.meshgrid(torch.arange(12.0), torch.arange(17.0), torch.arange(2.0), indexing="ij")
    plane = (0.02 * row + 0.03 * column).expand(3, -1, -1, -1)
    observed = torch.rand(plane.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    smooth = smoothest(plane.flatten(1), observed.flatten(1), (12, 17, 2)).permute(0, 2, 3, 1)
    assert torch.equal(smooth[observed], plane[observed])
    inside = (slice(None), slice(3, -3), slice(3, -3))
    assert_allclose(smooth[inside], plane[inside], atol=0.02)
    flat = torch.full((1, 45), 0.7)
    one = torch.arange(45).unsqueeze(0) == 16
    assert_allclose(smoothest(flat, one, (9, 5, 1)).flatten(1), flat, atol=1e-6)
    assert torch.equal(smoothest(flat, one & False, (9, 5, 1)).flatten(1), torch.zeros_like(flat))


def test_images_start_smooth_where_they_are(digits):
    """Gradients are smooth, the eight by eight pixels of a digit are not."""
    slopes = np.random.default_rng(0).normal(size=(60, 1, 1)) * np.linspace(0, 1, 8) + np.zeros((60, 8, 8))
    for images, smooth in ((slopes, True), (digits[:600] / 16, False)):
        values = torch.as_tensor(images, dtype=torch.float32).flatten(1)
        torch.manual_seed(0)
        data = fitting.Images(values, torch.ones_like(values, dtype=torch.bool), (8, 8, 1), "count", 16)
        assert fitting._are_smooth(data, fitting.Held.choose(data)) == smooth


@pytest.mark.parametrize("kind", PIXELS)
def test_the_conditional_reading_starts_smooth(kind):
    """Before any training, a hidden pixel is near what the smoothest image has there."""
    torch.manual_seed(0)
    model = ConditionalImageVAE(small((10, 10, 3), kind)).eval()
    low, high = (-2, 2) if kind == "numeric" else (0.1, 0.9)
    x = torch.linspace(low, high, 10).repeat(2, 10, 1).unsqueeze(-1).repeat(1, 1, 1, 3).flatten(1).unsqueeze(0)
    observed = torch.rand(1, 2, 100).lt(0.7).repeat_interleave(3, -1)
    with torch.no_grad():
        answers = model.answers(x, observed, torch.zeros(1, 4))
    assert np.corrcoef(answers[~observed], x[~observed])[0, 1] > 0.9


def test_maps_cover_the_image():
    for height, width, _ in SHAPES:
        sizes = map_sizes(height, width)
        assert max(sizes[-1]) <= 8
        assert sizes[0][0] * stride(height, width) >= height
        seer = Seer(height, width, 2, (8,), 1, 16, 0.0)
        maps, vector = seer(torch.rand(3, 2, height, width))
        assert [tuple(m.shape[2:]) for m in maps] == sizes
        assert vector.shape == (3, 16)
        assert Painter(height, width, 5, 16, (8,), 1, 0.0, sees=True)(vector, maps).shape == (3, 5, height, width)


def test_holes_of_the_training():
    """A pixel goes with its channels; about half of the images lose one rectangle, the others scattered pixels."""
    torch.manual_seed(0)
    kept = shown(torch.ones(1, 2000, 12 * 10 * 3, dtype=torch.bool), (12, 10, 3)).view(2000, 12, 10, 3)
    assert (kept == kept[..., :1]).all()
    hidden = ~kept[..., 0]
    area = hidden.any(2).sum(1) * hidden.any(1).sum(1)
    rectangles = hidden.sum((1, 2)) == area
    assert 0.45 < rectangles.float().mean() < 0.62
    assert 0.3 < hidden.float().mean() < 0.5


# --- the imputer ------------------------------------------------------------------------------------------------------


def test_imputed_pixels_are_better_than_means(imputer, digits, holed):
    truth, hidden = digits[1000:1040].astype(float), np.isnan(holed)
    filled = imputer.impute(holed)
    assert_array_equal(filled[~hidden], holed[~hidden])
    means = np.broadcast_to(digits[:600].mean(0), holed.shape)
    assert np.square(filled - truth)[hidden].mean() < 0.7 * np.square(means - truth)[hidden].mean()
    assert filled.min() >= 0
    assert filled.max() <= 16


def test_the_layout_makes_no_difference(imputer, holed):
    filled = imputer.impute(holed)
    assert_array_equal(imputer.impute(holed.reshape(40, 64)), filled.reshape(40, 64))
    assert_array_equal(imputer.impute(holed[..., None]), filled[..., None])
    assert_array_equal(imputer.transform(holed), filled)
    assert imputer.set_output(transform="default").transform(holed.reshape(40, 64)).shape == (40, 64)


def test_an_image_alone_gets_the_same_answer(imputer, holed):
    assert_allclose(imputer.impute(holed[:1]), imputer.impute(holed)[:1], atol=1e-4)
    assert_allclose(imputer.anomaly_score(holed[:1]), imputer.anomaly_score(holed)[:1], atol=1e-4)


def test_draws_differ_and_are_levels(imputer, holed):
    state = torch.random.get_rng_state()
    draws = imputer.impute(holed, n_imputations=3, random_state=0)
    again = imputer.impute(holed, n_imputations=3, random_state=0)
    assert torch.equal(state, torch.random.get_rng_state())
    hidden = np.isnan(holed)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))
    assert (draws[0] != draws[1])[hidden].mean() > 0.1
    for draw in draws:
        assert_array_equal(draw[~hidden], holed[~hidden])
        assert_allclose(draw, draw.round(), atol=1e-4)


def test_samples_and_latents(imputer, holed):
    sampled = imputer.sample(5, random_state=0)
    assert sampled.shape == (5, 8, 8)
    assert sampled.dtype == np.uint8
    assert sampled.max() <= 16
    assert imputer.sample(2, given=holed[:3], random_state=0).shape == (6, 8, 8)
    latent = imputer.encode(holed)
    assert latent.shape == (40, imputer.ensemble_.joint.n_latent)
    assert imputer.decode(latent).shape == (40, 8, 8)
    assert np.isfinite(imputer.score(holed))


def test_scores_of_rows_and_pixels(imputer, holed):
    strange = holed.copy()
    strange[:, :, 4:] = np.where(np.isnan(holed[:, :, 4:]), np.nan, 16 - holed[:, :, 4:])
    assert imputer.anomaly_score(strange).mean() > imputer.anomaly_score(holed).mean() + 1
    cells = imputer.cell_anomaly_score(strange)
    assert_array_equal(np.isnan(cells), np.isnan(strange))
    assert np.nanmean(cells[:, :, 4:]) > np.nanmean(imputer.cell_anomaly_score(holed)[:, :, 4:])


def test_edges_of_the_input(imputer, digits, holed):
    complete = digits[:3]
    assert_array_equal(imputer.impute(complete), complete)
    one = np.full((1, 8, 8), np.nan)
    one[0, 4, 4] = 16
    assert np.isfinite(imputer.impute(one)).all()
    assert np.isfinite(imputer.impute(np.full((1, 8, 8), np.nan))).all()
    assert np.isfinite(imputer.impute(np.where(np.isnan(holed), np.nan, 0.0))).all()
    for wrong in (np.zeros((2, 9, 8)), np.zeros((2, 8, 8, 3)), np.zeros((2, 63))):
        with pytest.raises(ValueError, match="X has shape"):
            imputer.impute(wrong)
    before = holed.copy()
    imputer.impute(holed)
    assert_array_equal(holed, before)


def test_saved_and_pickled(imputer, holed, tmp_path):
    imputer.save(tmp_path / "m.safetensors")
    for again in (VAEImputer.load(tmp_path / "m.safetensors"), pickle.loads(pickle.dumps(imputer))):
        assert again.image_shape == (8, 8)
        assert_array_equal(again.impute(holed), imputer.impute(holed))
        assert_array_equal(again.anomaly_score(holed), imputer.anomaly_score(holed))
        assert_array_equal(again.sample(2, random_state=1), imputer.sample(2, random_state=1))


@pytest.mark.parametrize("n", [1, 2, 12])
def test_few_images(n, digits, short):
    X = digits[:n].astype(float)
    X[0, 2:4] = np.nan
    filled = VAEImputer(image_shape=(8, 8), random_state=0, time_budget=5).fit(X).impute(X)
    assert np.isfinite(filled).all()
    assert filled.max() <= 16


def test_black_images(short):
    X = np.zeros((30, 8, 8), dtype=np.uint8)
    imputer = VAEImputer(image_shape=(8, 8), random_state=0, time_budget=5).fit(X)
    holed = X.astype(float)
    holed[:, 1] = np.nan
    assert_array_equal(imputer.impute(holed), 0.0)


@pytest.mark.parametrize("kind", ["boolean", "numeric"])
def test_binary_and_real_pixels(kind, short):
    """Images are a pattern or its negative: what is left of one says which, and the mean image says nothing."""
    rng = np.random.default_rng(0)
    pattern = rng.choice([-1.0, 1.0], (8, 8))
    X = pattern * rng.choice([-1, 1], (200, 1, 1)) + rng.normal(0, 0.1, (200, 8, 8))
    X = X > 0 if kind == "boolean" else X
    holed = X.astype(float)
    holed[:, 2:4, 2:6] = np.nan
    imputer = VAEImputer(image_shape=(8, 8), random_state=0).fit(X)
    filled = imputer.impute(holed)
    assert imputer.encoder_.kind == kind
    assert np.square(filled - X)[:, 2:4, 2:6].mean() < 0.5 * np.square(X.mean(0) - X)[:, 2:4, 2:6].mean()
    assert set(np.unique(filled)) <= {0.0, 1.0} if kind == "boolean" else np.isfinite(filled).all()


@pytest.mark.slow
def test_colour_and_holes_in_the_training(short, monkeypatch):
    monkeypatch.setattr(fitting, "_FEWEST_STEPS", 250)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (60, 1, 1, 3))
    X = np.clip(base + rng.integers(-9, 9, (60, 9, 12, 3)), 0, 255).astype(float)  # each image has its colour
    holed = np.where(rng.random(X.shape) < 0.3, np.nan, X)
    filled = VAEImputer(image_shape=(9, 12, 3), random_state=0).fit_transform(holed)
    hidden = np.isnan(holed)
    assert np.abs(filled - X)[hidden].mean() < 0.5 * np.abs(X.mean(0) - X)[hidden].mean()


@pytest.mark.slow
def test_networks_mlp_takes_pixels_as_columns(digits, holed):
    imputer = VAEImputer(image_shape=(8, 8), networks="mlp", random_state=0, time_budget=5).fit(digits[:150])
    filled = imputer.impute(holed)
    truth, hidden = digits[1000:1040], np.isnan(holed)
    means = np.broadcast_to(digits[:150].mean(0), holed.shape)
    assert np.square(filled - truth)[hidden].mean() < np.square(means - truth)[hidden].mean()
    assert imputer.anomaly_score(holed).shape == (40,)


def test_networks_mlp_leaves_pixels_that_it_never_saw(digits):
    X = digits[:30].astype(float)
    X[:, 0, 3] = np.nan
    with pytest.warns(UserWarning, match=r"Pixels without any observed value are not modelled: 1\."):
        imputer = VAEImputer(image_shape=(8, 8), networks="mlp", random_state=0).fit(X)
    X[:, 4, 4] = np.nan
    assert_array_equal(np.isnan(imputer.transform(X)).sum(0), 30 * np.eye(64)[3].reshape(8, 8))


def test_memory_mapped_images(digits, short, tmp_path):
    np.save(tmp_path / "x.npy", digits[:80])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = VAEImputer(image_shape=(8, 8), random_state=0).fit(mapped)
    b = VAEImputer(image_shape=(8, 8), random_state=0).fit(digits[:80])
    holed = np.where(np.arange(64).reshape(8, 8) % 3 == 0, np.nan, digits[90:95])
    assert_array_equal(a.impute(holed), b.impute(holed))


def test_of_many_images_a_part_is_read(digits, monkeypatch):
    monkeypatch.setattr(encoding, "_MOST", 64 * 50)
    monkeypatch.setattr(encoding, "_LOOK", 64 * 7)
    part = encoding.bounded(digits, (8, 8, 1), 0)
    assert len(part) == 50
    rows = [int(np.flatnonzero((digits == image).all((1, 2)))[0]) for image in part]
    assert rows == sorted(rows)
    assert rows[-1] > 1000
    encoder = ImageEncoder.fit(digits[:20], (8, 8, 1))
    assert_array_equal(encoder.encode(digits[:20])[0], digits[:20].reshape(20, 64).astype(np.float32) / 16)


def test_in_a_pipeline(digits, short):
    X = digits[:80].reshape(80, 64).astype(float)
    X[::2, 10:20] = np.nan
    step = VAEImputer(image_shape=(8, 8), random_state=0, add_indicator=True)
    out = make_pipeline(step, MinMaxScaler()).fit_transform(X)
    assert out.shape == (80, 74)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="add_indicator"):
        step.fit(X).transform(X.reshape(80, 8, 8))


def test_medians(imputer, holed):
    median = imputer.set_params(point="median").impute(holed[:5])
    imputer.set_params(point="mean")
    assert_array_equal(median[~np.isnan(holed[:5])], holed[:5][~np.isnan(holed[:5])])
    assert_allclose(median, median.round(), atol=1e-4)  # a draw is a level, and so is their median


def test_what_is_filled_in_is_no_hole(digits, short):
    imputer = VAEImputer(image_shape=(8, 8), missing_values=8, random_state=0).fit(digits[:80])
    assert not (imputer.impute(digits[:80]) == 8).any()
    assert not (imputer.sample(20, random_state=0) == 8).any()


def test_scores_do_not_depend_on_the_order_of_the_training_images(digits, short):
    X = digits[:240]
    X = X[np.argsort(X.mean((1, 2)))]  # the first hundred say little of the others
    scores = VAEImputer(image_shape=(8, 8), random_state=0).fit(X).cell_anomaly_score(X)
    assert abs(scores[:100].mean() - scores[140:].mean()) < 0.5


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (np.ma.masked_less(np.ones((2, 8, 8)), 2), TypeError, "masked array"),
        (np.zeros((0, 8, 8)), ValueError, "0 sample"),
    ],
)
def test_what_cannot_be_filled(imputer, X, error, match):
    with pytest.raises(error, match=match):
        imputer.impute(X)


def test_a_third_value_of_binary_pixels_is_refused(digits, short):
    imputer = VAEImputer(image_shape=(8, 8), random_state=0).fit(digits[:40] > 7)
    with pytest.raises(ValueError, match=r"X holds 2 in image 0, pixel \(1, 2\)"):
        imputer.impute(np.where(np.arange(64).reshape(1, 8, 8) == 10, 2, 0))
    with pytest.raises(TypeError, match="missing_values='x'"):
        VAEImputer(image_shape=(8, 8), missing_values="x").fit(digits[:5])


def test_ctrl_c_is_told(digits, short, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vaeimpute.training.loop._batch", stop)
    for estimator in (VAEImputer(image_shape=(8, 8)), VAEOutlierDetector(image_shape=(8, 8))):
        with pytest.warns(UserWarning, match="interrupted"):
            estimator.fit(digits[:50])


# --- the detector -----------------------------------------------------------------------------------------------------


def test_strange_images_are_found(detector, digits):
    ordinary = digits[1000:1200]
    strange = np.ascontiguousarray(16 - ordinary)
    assert detector.anomaly_score(strange).min() > np.median(detector.anomaly_score(ordinary))
    assert (detector.predict(strange) == -1).mean() > 0.95
    assert (detector.predict(ordinary) == -1).mean() < 0.15
    assert 0.4 < detector.p_values(ordinary).mean() < 0.6
    assert detector.select(np.concatenate([ordinary, strange[:50]]))[200:].mean() > 0.8


def test_holes_do_not_make_an_image_strange(detector, digits):
    X = digits[1000:1200].astype(float)
    X[:, :4] = np.nan
    assert (detector.predict(X) == -1).mean() < 0.2
    nothing = detector.anomaly_score(np.full((1, 8, 8), np.nan))
    assert np.quantile(detector.anomaly_score(digits[1000:1200]), [0, 0.95])[1] > nothing


def test_a_defect_is_seen_and_repaired(detector, digits):
    ordinary = digits[1000:1100]
    defect = ordinary.copy()
    defect[:, 0:2, 0:2] = 16
    scores = detector.cell_anomaly_score(defect)
    assert scores.shape == (100, 8, 8)
    assert np.median(scores[:, 0:2, 0:2].mean((1, 2)) - scores[:, 2:, 2:].mean((1, 2))) > 3
    repaired = detector.repair(defect, threshold=3.0)
    assert repaired.dtype == np.uint8
    wrong = defect.astype(float) - ordinary
    left = repaired.astype(float) - ordinary
    assert np.abs(left)[:, 0:2, 0:2].mean() < 0.3 * np.abs(wrong)[:, 0:2, 0:2].mean()
    table = detector.explain(defect[:2], n_cells=2)
    assert list(table["column"].str[0]) == ["["] * 4


def test_the_detector_is_kept(detector, digits, tmp_path):
    X = digits[1000:1020]
    detector.save(tmp_path / "d.safetensors")
    for again in (VAEOutlierDetector.load(tmp_path / "d.safetensors"), pickle.loads(pickle.dumps(detector))):
        assert_array_equal(again.anomaly_score(X), detector.anomaly_score(X))
        assert_array_equal(again.cell_anomaly_score(X), detector.cell_anomaly_score(X))
        assert again.score(X) == detector.score(X)


@pytest.mark.parametrize("n", [20, 60])
def test_detectors_of_few_images(n, digits, short):
    """Of images that it has not seen it flags about 5%, however few it has seen."""
    flagged = [
        (VAEOutlierDetector(image_shape=(8, 8), random_state=seed).fit(digits[:n]).predict(digits[900:1200]) == -1)
        for seed in range(3)
    ]
    assert np.mean(flagged) < 0.2


def test_contaminated_training_images(digits, short):
    X = digits[:400].copy()
    X[:40] = 16 - X[:40]
    found = VAEOutlierDetector(image_shape=(8, 8), contamination=0.1, random_state=0).fit_predict(X) == -1
    assert found[:40].mean() > 0.8
    assert found.sum() == pytest.approx(40, abs=2)


def test_a_picture_of_the_strangest(detector, digits):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = detector.plot(digits[1000:1030], n_rows=4)
    assert len(ax.get_xticks()) == 4
    assert len(ax.images) == 2
    pyplot.close(ax.figure)


@pytest.mark.gpu
def test_images_on_a_gpu(digits, short):
    imputer = VAEImputer(image_shape=(8, 8), random_state=0, device="cuda").fit(digits[:300])
    assert np.isfinite(imputer.impute(np.where(digits[:20] > 12, np.nan, digits[:20].astype(float)))).all()
