"""benchmarks.image_sets: masks hide what their name says, files are where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import image_sets
from benchmarks.image_sets import MASKS, observed_pixels


@pytest.mark.parametrize("shape", [(8, 8), (12, 8), (9, 7), (8, 8, 3)])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, shape):
    """The rate is as named, all channels of a pixel go together, and nothing but set, kind and seed matters."""
    pixels = np.zeros((200, *shape))
    observed = observed_pixels("toy", mask, 0, pixels)
    assert observed.shape == pixels.shape
    one = observed.reshape(*observed.shape[:3], -1)
    assert (one == one[..., :1]).all()
    height, width = shape[:2]
    if mask.endswith("block"):
        assert ((~one[..., 0]).sum((1, 2)) == (height // 2) * (width // 2)).all()
        moved = (one != one[:1]).any()
        assert moved == (mask == "random-block")
    else:
        assert (~observed).mean() == pytest.approx(int(mask.rpartition("-")[2]) / 100, abs=0.02)
    np.testing.assert_array_equal(observed, observed_pixels("toy", mask, 0, pixels))
    if mask != "centre-block":
        assert (observed != observed_pixels("toy", mask, 1, pixels)).any()


def test_random_block_reaches_every_corner():
    observed = observed_pixels("toy", "random-block", 0, np.zeros((500, 8, 8)))
    assert not observed[:, [0, 0, -1, -1], [0, -1, 0, -1]].all(0).any()


def test_missing_files_say_where_they_belong(monkeypatch, tmp_path):
    monkeypatch.setenv("VAEIMPUTE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"images/mnist\.npz"):
        image_sets.stored("mnist")
    digits = image_sets.bundled_digits()
    assert (len(digits.train), len(digits.test), digits.train.max()) == (1297, 500, digits.max_level)
