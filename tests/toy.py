"""Toy data with a known truth: rows of exact linear-Gaussian models and mixtures, tables of every kind, images.

`numbers`, `frame` and `images` are also what the golden model files were fitted to: they must not change.
"""

import numpy as np
import pandas as pd
import torch

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, posterior
from vaeimpute.gaussian.mixture import Mixture
from vaeimpute.images.data import Images
from vaeimpute.images.encoder import ImageEncoder
from vaeimpute.likelihoods.families import LIKELIHOODS
from vaeimpute.tables.data import Table
from vaeimpute.tables.smoother import Given

F64 = torch.float64
KINDS = ("numeric", "numeric", "positive", "count", "ordinal", "categorical", "boolean")  # of the columns of `mixed`
N_CATEGORIES = (0, 0, 0, 0, 5, 4, 2)


class RandomTensors:
    """Random tensors from a generator of their own: PyTorch's global one stays as it is."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, dtype=F64):
        return torch.randn(*shape, dtype=dtype, generator=self.generator)

    def uniform(self, *shape, dtype=F64):
        return torch.rand(*shape, dtype=dtype, generator=self.generator)

    def mask(self, *shape, rate):
        """True at this rate."""
        return torch.rand(*shape, generator=self.generator) < rate

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator)

    def order(self, n):
        return torch.randperm(n, generator=self.generator)


def factor_analysis(n_columns=6, rank=2, seed=0, noise=(0.1, 0.4)):
    """A linear VAE whose columns have mean zero and variance one, with neither weak nor near-exact relations."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n_columns, rank, dtype=F64, generator=g)
    psi = noise[0] + (noise[1] - noise[0]) * torch.rand(n_columns, dtype=F64, generator=g)
    W *= ((1 - psi) / W.square().sum(1)).sqrt().unsqueeze(1)
    return FactorAnalysis(W, torch.zeros(n_columns, dtype=F64), psi)


def rows_of(truth, n, missing=0.2, seed=1):
    """Rows of a linear VAE: complete values and a mask of what is observed, (n, D), at random."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(n, truth.rank, dtype=F64, generator=g) @ truth.W.T + truth.b
    values += truth.psi.sqrt() * torch.randn(n, len(truth.b), dtype=F64, generator=g)
    return values, torch.rand(n, len(truth.b), generator=g) >= missing


def two_clusters():
    """A mixture of two linear VAEs whose columns have mean zero and variance one; neither is round."""
    g = torch.Generator().manual_seed(0)
    W, b = torch.randn(2, 5, 2, dtype=F64, generator=g), torch.randn(1, 5, dtype=F64, generator=g)
    b, psi = torch.cat([b, -b]), torch.full((2, 5), 0.3, dtype=F64)
    scale = (b.square() + W.square().sum(-1) + psi).mean(0).sqrt()
    return Mixture(
        torch.tensor([0.5, 0.5], dtype=F64).log(), FactorAnalysis(W / scale.unsqueeze(-1), b / scale, psi / scale**2)
    )


def rows_of_mixture(truth, n, missing=0.2, seed=1):
    """Rows of a mixture of linear VAEs: complete values and a mask of what is observed, (n, D), at random."""
    g = torch.Generator().manual_seed(seed)
    label = torch.multinomial(truth.log_weight.exp(), n, replacement=True, generator=g)
    W, b, psi = (part[label] for part in truth.components)
    x = (W @ torch.randn(n, truth.components.rank, 1, dtype=F64, generator=g)).squeeze(-1) + b
    x += psi.sqrt() * torch.randn(n, b.shape[1], dtype=F64, generator=g)
    return x, torch.rand(x.shape, generator=g) >= missing


def numeric_table(values, observed):
    """Rows of numbers as the core takes them: missing cells hold a zero."""
    kinds = ["numeric"] * values.shape[1]
    return Table(torch.where(observed, values, 0), observed, kinds, [0] * values.shape[1])


def mixed(n=80, missing=0.2, seed=0, dtype=F64):
    """A table of two factors with columns of all kinds, the second with few distinct numbers."""
    draw = RandomTensors(seed)
    y = draw.normal(n, 2) @ draw.normal(2, 7) + 0.3 * draw.normal(n, 7)
    y = (y - y.mean(0)) / y.std(0)
    y[:, 1] = y[:, 1].mul(2).round().clamp(-2, 2) / 2
    y[:, 4] = torch.bucketize(y[:, 4].contiguous(), torch.tensor([-1.0, -0.3, 0.3, 1.0], dtype=F64)).double()
    y[:, 5] = torch.bucketize(y[:, 5].contiguous(), torch.tensor([-0.7, 0.0, 0.7], dtype=F64)).double()
    y[:, 6] = (y[:, 6] > 0).double()
    observed = ~draw.mask(n, 7, rate=missing)
    return Table(torch.where(observed, y, 0).to(dtype), observed, KINDS, N_CATEGORIES)


def correlated(n=30, seed=0):
    """Three columns of one factor as an array with NaN, in units of their own; the first row is all missing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 1)) * [1.0, 2.0, -1.0] + 0.1 * rng.normal(size=(n, 3)) + [0.0, 5.0, 100.0]
    X[rng.random(X.shape) < 0.25] = np.nan
    X[0] = np.nan
    return X


def curved(n=60, seed=0):
    """`correlated`, but the third column is a parabola: what a linear model leaves to the networks."""
    X = correlated(n, seed)
    X[:, 2] = 100 + X[:, 0] ** 2
    return X


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
    """Blobs of 6 x 5 pixels of 17 levels, with scattered pixels and squares missing."""
    rng = np.random.RandomState(2)
    y, x = np.mgrid[:6, :5]
    centre, width = rng.uniform(1, 4, size=(n, 2, 1, 1)), rng.uniform(1, 2.5, size=(n, 1, 1))
    blobs = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / width**2)
    X = np.round(16 * np.clip(blobs + 0.05 * rng.normal(size=blobs.shape), 0, 1))
    X[rng.uniform(size=X.shape) < 0.1] = np.nan
    X[::4, 2:5, 1:3] = np.nan
    return X


def codes(n_categories, generator, n=400):
    """Codes of categories with unequal frequencies; some may not occur."""
    weight = torch.arange(1.0, n_categories + 1)
    return torch.multinomial(weight, n, replacement=True, generator=generator).double()


# family -> training cells and number of categories of columns of different width; a new family gets its row here
CELLS = {
    "gaussian": [(lambda g: torch.randn(100, dtype=F64, generator=g), 0), (lambda g: torch.zeros(100, dtype=F64), 0)],
    "discrete": [(lambda g, n=n: (codes(n, g) - n / 2) / n, 0) for n in (2, 5, 7, 32)],
    "categorical": [(lambda g, n=n: codes(n, g), n) for n in (2, 3, 4, 7, 30)],
    "ordinal": [(lambda g, n=n: codes(n, g), n) for n in (2, 3, 4, 7, 30)],
}


def training_cells(family):
    """Cells of some columns of a likelihood's family, and what it learns of each."""
    g = torch.Generator().manual_seed(0)
    cells = [make(g) for make, _ in CELLS[family]]
    fit = LIKELIHOODS[family].fit
    return cells, [fit(x, n_categories) for x, (_, n_categories) in zip(cells, CELLS[family], strict=True)]


def image_tensors(X, kind=None):
    """Images (n, H, W) or (n, H, W, C) as the core takes them."""
    shape = (*X.shape[1:], 1)[:3]
    encoder = ImageEncoder.fit(X, shape, kind=kind)
    values, observed, _ = encoder.encode(X)
    return Images(torch.as_tensor(values), torch.as_tensor(observed), shape, encoder.kind, encoder.max_level)


def given_by(x, visible, model):
    """What a linear VAE makes of rows whose hidden cells hold zero; the only one, so that it is the average as well."""
    _, chol = posterior(x, visible > 0, model)
    mean, variance = conditional(x, visible > 0, model)
    return Given(x, visible, mean, variance, mean, torch.cholesky_inverse(chol))
