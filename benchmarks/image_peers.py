"""What the images' benchmark compares: methods that fill holes (``PEERS``) and that find anomalies (``DETECTORS``).

All fit to complete images (n, H, W) or (n, H, W, C) of whole numbers, as they are. A method that fills gives back the
images with no hole left; one that finds anomalies a score for each, higher is stranger.

To add a method, write its function and add its row.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.neighbors import NearestNeighbors
from torch import nn

from benchmarks.image_sets import HOLES
from vaeimpute import VAEImputer, VAEOutlierDetector
from vaeimpute.images.encoder import as_rows
from vaeimpute.vae.inference import latent_noise

Fill = Callable[[np.ndarray], np.ndarray]  # images, NaN in the holes -> no hole left
Score = Callable[[np.ndarray], np.ndarray]  # images -> (n,)

__all__ = ["DETECTORS", "PEERS", "Peer", "bits_per_pixel"]


class Peer(NamedTuple):
    """A method that fills: how it is fitted, to how many pixels (all channels) at most, and its likelihood if any."""

    fit: Callable[..., Fill]  # (complete images, seed, **params) -> what fills others
    max_pixels: float = np.inf
    bits: Callable[[Fill, np.ndarray, np.ndarray], float | None] | None = None  # see `bits_per_pixel`


# --- filling ----------------------------------------------------------------------------------------------------------


def in_rows(fit: Callable[..., Fill]) -> Callable[..., Fill]:
    """A method on rows of pixels: it gives values for every pixel, and only the holes take them."""

    def fit_images(images: np.ndarray, seed: int, **params) -> Fill:
        inner = fit(images.reshape(len(images), -1).astype(np.float32), seed, **params)

        def fill(holed: np.ndarray) -> np.ndarray:
            values = inner(holed.reshape(len(holed), -1).astype(np.float32)).reshape(holed.shape)
            return np.where(np.isnan(holed), values, holed)

        return fill

    return fit_images


@in_rows
def mean(X: np.ndarray, seed: int) -> Fill:
    """The mean image."""
    centre = X.mean(0)
    return lambda rows: np.broadcast_to(centre, rows.shape)


@in_rows
def knn(X: np.ndarray, seed: int, k: int = 10) -> Fill:
    """Mean of the ``k`` training images that are nearest in the observed pixels."""

    def fill(rows: np.ndarray) -> np.ndarray:
        observed = ~np.isnan(rows)
        kept = np.where(observed, rows, 0)
        distances = observed.astype(np.float32) @ (X**2).T - 2 * kept @ X.T  # less the row's own square
        return np.stack([X[nearest].mean(0) for nearest in np.argpartition(distances, k, axis=1)[:, :k]])

    return fill


@in_rows
def ppca(X: np.ndarray, seed: int, n_factors: int = 64) -> Fill:
    """Conditional mean of probabilistic PCA (Tipping and Bishop 1999), fitted in closed form."""
    pca = PCA(min(n_factors, X.shape[1] // 2), random_state=seed).fit(X)
    noise = pca.noise_variance_
    loadings = pca.components_.T * np.sqrt(np.maximum(pca.explained_variance_ - noise, 0))  # (D, L)

    def fill(rows: np.ndarray) -> np.ndarray:
        filled = []
        for row in rows:
            kept = ~np.isnan(row)
            precision = loadings[kept].T @ loadings[kept] + noise * np.eye(loadings.shape[1])
            z = np.linalg.solve(precision, loadings[kept].T @ (row[kept] - pca.mean_[kept]))
            filled.append(pca.mean_ + loadings @ z)
        return np.stack(filled)

    return fill


@in_rows
def iterative(X: np.ndarray, seed: int) -> Fill:
    """scikit-learn's IterativeImputer. It fits to the training and the holed images together, so filling is the fit."""

    def fill(rows: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return IterativeImputer(random_state=seed).fit_transform(np.vstack([X, rows]))[len(X) :]

    return fill


def biharmonic(images: np.ndarray, seed: int) -> Fill:
    """The smoothest surface through the hole's rim, each image on its own (scikit-image); learns nothing."""
    from skimage.restoration import inpaint_biharmonic

    axis = -1 if images.ndim == 4 else None

    def fill(holed: np.ndarray) -> np.ndarray:
        missing = np.isnan(holed)
        masks = missing if axis is None else missing[..., 0].copy()  # contiguous, as scikit-image needs it
        known = np.where(missing, 0.0, holed)
        return np.stack(
            [inpaint_biharmonic(image, hole, channel_axis=axis) for image, hole in zip(known, masks, strict=True)]
        )

    return fill


class Autoencoder(nn.Module):
    """Two strided convolutions, a dense bottleneck, and back; with ``skips``, a U-Net: each scale also passes across.

    **Shape**: (B, C + 1, H, W), the image and what of it is observed -> (B, C, H, W) in 0..1; H and W divide by 4.
    """

    def __init__(self, channels: int, height: int, width: int, skips: bool, bottleneck: int = 128) -> None:
        super().__init__()
        small = (64, height // 4, width // 4)
        self.skips = skips
        self.first = nn.Sequential(nn.Conv2d(channels + 1, 32, 3, padding=1), nn.ReLU()) if skips else nn.Identity()
        self.down1 = nn.Sequential(nn.Conv2d(32 if skips else channels + 1, 32, 3, 2, 1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(
            nn.Flatten(),
            nn.Linear(int(np.prod(small)), bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, int(np.prod(small))),
            nn.ReLU(),
            nn.Unflatten(1, small),
        )
        self.up1 = nn.Sequential(nn.ConvTranspose2d(128 if skips else 64, 32, 4, 2, 1), nn.ReLU())
        self.up2 = nn.Sequential(nn.ConvTranspose2d(64 if skips else 32, 32, 4, 2, 1), nn.ReLU())
        self.last = nn.Conv2d(64 if skips else 32, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.first(x)
        half = self.down1(whole)
        quarter = self.down2(half)
        y = self.up1(self._beside(self.middle(quarter), quarter))
        y = self.up2(self._beside(y, half))
        return self.last(self._beside(y, whole)).sigmoid()

    def _beside(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([y, x], 1) if self.skips else y


def autoencoder(
    images: np.ndarray, seed: int, skips: bool = False, steps: int = 2000, batch: int = 64, device: str = "cpu"
) -> Fill:
    """`Autoencoder` trained to give whole images from images with holes, the mean image in the holes.

    Every batch gets fresh holes of the kinds in ``HOLES``, those of the test: what it may know beforehand, it knows.
    Squared error on all pixels, Adam, one cycle up to 2e-3; minutes on one core.
    """
    torch.manual_seed(seed)
    rng, peak = np.random.default_rng(seed), float(images.max())
    x = _channels_first(images) / peak
    centre = x.mean(0)
    network = Autoencoder(*x.shape[1:], skips=skips).to(device)
    optimizer = torch.optim.Adam(network.parameters())
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    kinds = [*HOLES.values()]
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(x), size=batch))
        cut = np.stack([kind(batch, *images.shape[1:3], rng) for kind in kinds])
        observed = cut[rng.integers(len(kinds), size=batch), np.arange(batch)]  # each image takes one of the kinds
        given = _given(x[rows], torch.from_numpy(observed[:, None]), centre)
        loss = ((network(given.to(device)) - x[rows].to(device)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()

    def fill(holed: np.ndarray) -> np.ndarray:
        y = _channels_first(holed) / peak
        given = _given(y, ~y[:, :1].isnan(), centre)
        with torch.no_grad():
            answer = torch.cat([network(part.to(device)).cpu() for part in given.split(500)])
        values = peak * answer.permute(0, 2, 3, 1).reshape(holed.shape).double().numpy()
        return np.where(np.isnan(holed), values, holed)

    return fill


def _channels_first(images: np.ndarray) -> torch.Tensor:
    """(n, H, W) or (n, H, W, C) -> float (n, C, H, W)."""
    return torch.from_numpy(images.reshape(*images.shape[:3], -1).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def _given(x: torch.Tensor, observed: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """The network's input: (n, C, H, W) with the mean image in the holes, and ``observed`` (n, 1, H, W) below it."""
    return torch.cat([torch.where(observed, x, centre), observed.float()], 1)


def vaeimpute(images: np.ndarray, seed: int, **params) -> Fill:
    """Ours, on the images as they are."""
    return VAEImputer(image_shape=images.shape[1:], random_state=seed, **params).fit(images).impute


@torch.no_grad()
def bits_per_pixel(fill: Fill, images: np.ndarray, observed: np.ndarray) -> float:
    """Mean of -log2 p(hidden pixel | observed pixels) of whole images under `vaeimpute`; each channel counts as one.

    All hidden pixels of an image are one event: its density is averaged over the latent's draws, which bounds it from
    below.
    """
    imputer: VAEImputer = fill.__self__  # what fills is the imputer's own method
    model = imputer.ensemble_.conditional
    noise, values = latent_noise(model), torch.from_numpy(imputer.encoder_.encode(images)[0]).to(model.weights)
    seen = torch.from_numpy(as_rows(observed, imputer.encoder_.shape)).to(values.device)
    nats = 0.0
    for x, o in zip(values.split(50), seen.split(50), strict=True):
        log_px = model.likelihoods.log_prob(model.draws(x[None], o[None], noise)[0], x[None, None])
        whole = torch.where(o, 0, log_px).double().sum(-1)
        nats -= (torch.logsumexp(whole, 1) - math.log(len(noise))).sum().item()
    return nats / math.log(2) / int((~seen).sum())


PEERS: dict[str, Peer] = {
    "mean": Peer(mean),
    "knn": Peer(knn),
    "ppca": Peer(ppca),
    "iterative": Peer(iterative, max_pixels=100),  # a regression for each pixel
    "biharmonic": Peer(biharmonic),
    "conv-ae": Peer(autoencoder),
    "unet": Peer(partial(autoencoder, skips=True)),
    "vaeimpute": Peer(vaeimpute, bits=bits_per_pixel),
}


# --- finding anomalies ------------------------------------------------------------------------------------------------


def scoring_rows(fit: Callable[[np.ndarray, int], Score]) -> Callable[[np.ndarray, int], Score]:
    """A method on rows of pixels."""

    def fit_images(images: np.ndarray, seed: int) -> Score:
        inner = fit(images.reshape(len(images), -1).astype(np.float32), seed)
        return lambda others: inner(others.reshape(len(others), -1).astype(np.float32))

    return fit_images


@scoring_rows
def pca_residual(X: np.ndarray, seed: int) -> Score:
    """Squared distance from the plane of 64 principal components."""
    pca = PCA(min(64, *X.shape), random_state=seed).fit(X)
    return lambda rows: ((rows - pca.inverse_transform(pca.transform(rows))) ** 2).sum(1)


@scoring_rows
def knn_distance(X: np.ndarray, seed: int) -> Score:
    """Mean distance to the 5 nearest training images."""
    neighbours = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(X)
    return lambda rows: neighbours.kneighbors(rows)[0].mean(1)


@scoring_rows
def isolation_forest(X: np.ndarray, seed: int) -> Score:
    """scikit-learn's isolation forest."""
    forest = IsolationForest(random_state=seed).fit(X)
    return lambda rows: -forest.score_samples(rows)


def detector(images: np.ndarray, seed: int, **params) -> Score:
    """Ours, on the images as they are."""
    return VAEOutlierDetector(image_shape=images.shape[1:], random_state=seed, **params).fit(images).anomaly_score


# (ordinary images, seed, **params) -> a score of images
DETECTORS: dict[str, Callable[..., Score]] = {
    "pca": pca_residual,
    "knn": knn_distance,
    "iforest": isolation_forest,
    "vaeimpute": detector,
}
