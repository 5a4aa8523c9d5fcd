"""Images as columns: every layout and dtype comes back, what the pixels are is seen, and little is held in memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from vaeimpute.images.encoder import ImageEncoder, as_rows, bounded, pixel_shape


@pytest.mark.parametrize("layout", [(7, 48), (7, 8, 6), (7, 8, 6, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_every_layout_and_dtype_comes_back(layout, dtype):
    X = np.random.default_rng(0).integers(0, 256, layout).astype(dtype)
    encoder = ImageEncoder.fit(X, (8, 6, 1))
    values, observed, unseen = encoder.encode(X)
    assert encoder.kind == "count"
    assert values.shape == unseen.shape == (7, 48)
    assert observed.all()
    assert not unseen.any()
    for back in (encoder.build(values), encoder.fill(X, values, observed)):
        assert back.shape == X.shape
        assert back.dtype == X.dtype
        assert_allclose(back, X, atol=1e-4)


def test_only_what_is_to_be_rewritten_is():
    X = np.random.default_rng(0).normal(size=(7, 8, 6))
    encoder, rewritten = ImageEncoder.fit(X, (8, 6, 1)), np.random.default_rng(1).random((7, 48)) < 0.3
    before = X.copy()
    filled = encoder.fill(X, np.zeros((7, 48)), rewritten)
    assert_array_equal(X, before)
    assert_array_equal(filled.reshape(7, 48)[~rewritten], X.reshape(7, 48)[~rewritten])
    assert_allclose(filled.reshape(7, 48)[rewritten], encoder.offset)


@pytest.mark.parametrize(
    ("X", "kind", "max_level"),
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
def test_what_pixels_are_is_seen(X, kind, max_level):
    encoder = ImageEncoder.fit(X, (2, 2, 1))
    assert (encoder.kind, encoder.max_level) == (kind, max_level)
    assert_allclose(encoder.build(encoder.encode(X)[0]).astype(float), X.astype(float), rtol=1e-5, atol=1e-5)
    assert ImageEncoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


def test_a_pixel_can_mean_missing():
    X = np.array([[0, 9, 255, 3]], dtype=np.uint8)
    observed = ImageEncoder.fit(X, (2, 2, 1), missing_values=255).encode(X).observed
    assert_array_equal(observed, [[True, True, False, True]])


def test_what_is_filled_in_never_reads_as_missing_again():
    X = np.arange(16, dtype=np.uint8).reshape(4, 4)
    encoder = ImageEncoder.fit(X, (2, 2, 1), missing_values=8)
    grid = np.linspace(0, 1, 400).reshape(100, 4)
    assert not (encoder.build(grid) == 8).any()


@pytest.mark.parametrize("shape", [(8,), (8, 0), (8, 8, 1, 1), (8.5, 2), ("a", "b")])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="image_shape must be"):
        pixel_shape(shape)


def test_memory_mapped_images_are_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 8, 6), dtype=np.uint8))
    rows = as_rows(np.load(tmp_path / "x.npy", mmap_mode="r"), (8, 6, 1))
    assert isinstance(rows, np.memmap)
    assert rows.shape == (5, 48)


def test_of_too_many_images_a_random_part_is_read_in_their_order():
    numbers = np.arange(100)
    assert bounded(numbers, (2000, 2000, 1), seed=0) is numbers
    part = bounded(numbers, (4000, 4000, 1), seed=0)  # 400 million pixels
    assert len(part) == 25
    assert part.tolist() == sorted(set(part.tolist()))
    assert part[-1] > 50
    assert_array_equal(part, bounded(numbers, (4000, 4000, 1), seed=0))
    assert not np.array_equal(part, bounded(numbers, (4000, 4000, 1), seed=1))
    assert len(bounded(numbers, (4000, 4000, 100), seed=0)) == 1


def test_images_are_read_part_by_part():
    """More than ten million pixels: the last part tells of the largest level, and all parts are encoded."""
    X = np.zeros((12, 1000, 1000), dtype=np.uint8)
    X[:, 0, 0] = np.arange(12)
    X[-1, -1, -1] = 255
    encoder = ImageEncoder.fit(X, (1000, 1000, 1))
    assert (encoder.kind, encoder.max_level, encoder.low, encoder.high) == ("count", 255, 0.0, 255.0)
    values, observed, _ = encoder.encode(X)
    assert observed.all()
    assert_allclose(values[:, 0], np.arange(12) / 255, rtol=1e-6)
    assert values[-1, -1] == 1
    assert np.count_nonzero(values) == 12


def test_names_and_kinds_are_those_of_the_columns():
    encoder = ImageEncoder.fit(np.arange(2 * 18).reshape(2, 2, 3, 3), (2, 3, 3))
    assert len(encoder.names) == len(encoder.kinds) == len(encoder.n_categories) == encoder.n_pixels == 18
    assert encoder.names[:4] == ["[0, 0, 0]", "[0, 0, 1]", "[0, 0, 2]", "[0, 1, 0]"]
    assert ImageEncoder.fit(np.arange(12).reshape(2, 2, 3), (2, 3, 1)).names[-1] == "[1, 2]"


def test_the_jacobian_is_that_of_the_scale():
    X = np.random.default_rng(0).normal(3, 5, (9, 4))
    encoder = ImageEncoder.fit(X, (2, 2, 1))
    values = encoder.encode(X).values
    slope = (encoder.encode(X + 1e-2).values - values) / 1e-2
    assert_allclose(encoder.log_jacobian(values), np.log(slope), atol=1e-3)
    levels = np.arange(12).reshape(3, 4)
    assert not ImageEncoder.fit(levels, (2, 2, 1)).log_jacobian(levels).any()
