"""Tables and sets that the benchmarks take for theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bench_toys import blobs, stripes
from threadpoolctl import threadpool_limits

from benchmarks import images
from benchmarks.datasets import TABLES, Table
from benchmarks.image_sets import SETS, Images


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of BLAS and torch wait for one another in products as small as these."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def toy(monkeypatch) -> str:
    """A table with numbers, classes, a constant column and a row with a missing cell: one row in TABLES."""

    def source() -> pd.DataFrame:
        rng = np.random.default_rng(0)
        x = rng.standard_normal(60)
        frame = pd.DataFrame({"x": x, "y": 2 * x + 0.1 * rng.standard_normal(60), "n": rng.integers(0, 9, 60)})
        frame["colour"] = np.where(x > 0, "red", np.where(x < -1, "blue", "green"))
        frame["flag"] = x > 0.5
        frame["constant"] = 1
        frame.loc[3, "x"] = np.nan
        return frame

    monkeypatch.setitem(TABLES, "toy", Table(source, "held-out"))
    return "toy"


@pytest.fixture
def toy_sets(monkeypatch) -> None:
    """Small stand-ins for all sets; the classes of MNIST's are the shapes (0: blobs, 1: stripes)."""
    images.load.cache_clear()
    classes = np.repeat([0, 1], 60)
    both = np.concatenate([blobs(60), stripes(60)])
    grey = Images(blobs(120), classes, blobs(20, seed=1), classes[50:70], max_level=16)
    sets = {
        "mnist": Images(both, classes, both[40:80], classes[40:80], max_level=16),
        "fashion": Images(stripes(120), classes, stripes(20, seed=1), classes[50:70], max_level=16),
        "digits": grey,
        "cifar": Images(blobs(60, channels=3), classes[:60], blobs(10, channels=3, seed=1), classes[:10], max_level=16),
    }
    for name, made in sets.items():
        monkeypatch.setitem(SETS, name, lambda made=made: made)
    yield
    images.load.cache_clear()


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """Two small sets, their rows on a line but for twelve outliers, and a constant column."""
    (tmp_path / "anomaly").mkdir()
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(120, 1))
        X = np.column_stack([z, 2 * z, -z, np.zeros(120)]) + [0.1, 0.1, 0.1, 0] * rng.normal(size=(120, 4))
        y = np.arange(120) < 12
        X[y, 1] += 9
        np.savez(tmp_path / "anomaly" / f"{name}.npz", X=X, y=y)
    monkeypatch.setenv("VAEIMPUTE_DATA", str(tmp_path))
    return tmp_path
