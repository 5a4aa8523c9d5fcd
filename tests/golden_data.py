"""The tables and images that the golden model files were fitted to."""

import numpy as np
import pandas as pd


def numbers(n=90):
    """Five columns of two factors, one curved and one whole, a fifth of the cells missing; two gross errors."""
    rng = np.random.RandomState(0)
    z = rng.normal(size=(n, 2))
    X = z @ rng.normal(size=(2, 5)) + 0.3 * rng.normal(size=(n, 5))
    X[:, 3] = X[:, 0] ** 2 + 0.1 * rng.normal(size=n)
    X[:, 4] = np.round(3 * X[:, 4])
    X[5, 1], X[7, 2] = 40.0, -9.5
    X[rng.uniform(size=X.shape) < 0.2] = np.nan
    return X


def frame(n=120):
    """A column of every kind."""
    rng = np.random.RandomState(1)
    z = rng.normal(size=n)
    table = pd.DataFrame(
        {
            "size": z + 0.2 * rng.normal(size=n),
            "income": np.exp(3 * (z + rng.normal(size=n))),
            "rooms": pd.array(rng.poisson(np.exp(1 + 0.3 * z)), dtype="Int64"),
            "colour": np.where(z > 0.5, "red", np.where(rng.uniform(size=n) < 0.5, "blue", "green")),
            "grade": pd.Categorical.from_codes(np.digitize(z, [-0.5, 0.5]), ["low", "mid", "high"], ordered=True),
            "new": pd.array(z + rng.normal(size=n) > 0, dtype="boolean"),
            "when": pd.to_datetime("2024-01-01") + pd.to_timedelta(np.round(30 * z + 100), unit="D"),
        }
    )
    return table.mask(rng.uniform(size=table.shape) < 0.15)


def images(n=90):
    """Blobs of 6 x 5 pixels of 17 levels, with scattered and square holes."""
    rng = np.random.RandomState(2)
    y, x = np.mgrid[:6, :5]
    centre, width = rng.uniform(1, 4, size=(n, 2, 1, 1)), rng.uniform(1, 2.5, size=(n, 1, 1))
    blobs = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / width**2)
    X = np.round(16 * np.clip(blobs + 0.05 * rng.normal(size=blobs.shape), 0, 1))
    X[rng.uniform(size=X.shape) < 0.1] = np.nan
    X[::4, 2:5, 1:3] = np.nan
    return X
