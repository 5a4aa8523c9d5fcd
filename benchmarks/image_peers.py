"""What the images' benchmark compares: methods that inpaint (``PEERS``) and that find anomalies (``DETECTORS``).

All fit to complete images (n, H, W) or (n, H, W, C) of whole numbers, as they are. A method that inpaints gives back
complete images; one that finds anomalies a score for each, higher is more anomalous.

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

from benchmarks.image_sets import MASKS
from vaeimpute import VAEImputer, VAEOutlierDetector
from vaeimpute.vae.inference import latent_noise

Inpaint = Callable[[np.ndarray], np.ndarray]  # images, NaN in missing pixels -> complete images
Score = Callable[[np.ndarray], np.ndarray]  # images -> (n,)

__all__ = ["DETECTORS", "PEERS", "Peer", "bits_per_pixel"]


class Peer(NamedTuple):
    """Method that inpaints: how it is fitted, to how many pixels (all channels) at most, its likelihood if any."""

    fit: Callable[..., Inpaint]  # (complete images, seed, **params) -> what completes others
    max_pixels: float = np.inf
    bits: Callable[[Inpaint, np.ndarray, np.ndarray], float | None] | None = None  # see `bits_per_pixel`


# --- inpainting -------------------------------------------------------------------------------------------------------


def in_rows(fit: Callable[..., Inpaint]) -> Callable[..., Inpaint]:
    """Give a method rows of pixels: it predicts every pixel, and only the missing ones take it."""

    def fit_images(images: np.ndarray, seed: int, **params: object) -> Inpaint:
        inner = fit(images.reshape(len(images), -1).astype(np.float32), seed, **params)

        def inpaint(incomplete: np.ndarray) -> np.ndarray:
            values = inner(incomplete.reshape(len(incomplete), -1).astype(np.float32)).reshape(incomplete.shape)
            return np.where(np.isnan(incomplete), values, incomplete)

        return inpaint

    return fit_images


@in_rows
def mean(X: np.ndarray, seed: int) -> Inpaint:
    """Mean image."""
    centre = X.mean(0)
    return lambda rows: np.broadcast_to(centre, rows.shape)


@in_rows
def knn(X: np.ndarray, seed: int, k: int = 10) -> Inpaint:
    """Mean of the ``k`` training images that are nearest in the observed pixels."""

    def inpaint(rows: np.ndarray) -> np.ndarray:
        observed = ~np.isnan(rows)
        kept = np.where(observed, rows, 0)
        distances = observed.astype(np.float32) @ (X**2).T - 2 * kept @ X.T  # less the row's own square
        return np.stack([X[nearest].mean(0) for nearest in np.argpartition(distances, k, axis=1)[:, :k]])

    return inpaint


@in_rows
def ppca(X: np.ndarray, seed: int, n_factors: int = 64) -> Inpaint:
    """Conditional mean of probabilistic PCA (Tipping and Bishop 1999), fitted in closed form."""
    pca = PCA(min(n_factors, X.shape[1] // 2), random_state=seed).fit(X)
    noise = pca.noise_variance_
    loadings = pca.components_.T * np.sqrt(np.maximum(pca.explained_variance_ - noise, 0))  # (D, L)

    def inpaint(rows: np.ndarray) -> np.ndarray:
        filled = []
        for row in rows:
            kept = ~np.isnan(row)
            precision = loadings[kept].T @ loadings[kept] + noise * np.eye(loadings.shape[1])
            z = np.linalg.solve(precision, loadings[kept].T @ (row[kept] - pca.mean_[kept]))
            filled.append(pca.mean_ + loadings @ z)
        return np.stack(filled)

    return inpaint


@in_rows
def iterative(X: np.ndarray, seed: int) -> Inpaint:
    """scikit-learn's IterativeImputer, which inpaints by fitting to training and incomplete images together."""

    def inpaint(rows: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return IterativeImputer(random_state=seed).fit_transform(np.vstack([X, rows]))[len(X) :]

    return inpaint


def biharmonic(images: np.ndarray, seed: int) -> Inpaint:
    """Smoothest surface through the rim of what is missing, each image on its own (scikit-image); learns nothing."""
    from skimage.restoration import inpaint_biharmonic

    axis = -1 if images.ndim == 4 else None

    def inpaint(incomplete: np.ndarray) -> np.ndarray:
        missing = np.isnan(incomplete)
        masks = missing if axis is None else missing[..., 0].copy()  # contiguous, as scikit-image needs it
        known = np.where(missing, 0.0, incomplete)
        return np.stack(
            [inpaint_biharmonic(image, mask, channel_axis=axis) for image, mask in zip(known, masks, strict=True)]
        )

    return inpaint


class Autoencoder(nn.Module):
    """Two strided convolutions, a dense bottleneck, and back; a U-Net if its scales pass across, too.

    **Shape**: (B, C + 1, H, W), the image and what of it is observed -> (B, C, H, W) in 0..1; H and W divide by 4.
    """

    def __init__(
        self, channels: int, height: int, width: int, *, skip_connections: bool, bottleneck: int = 128
    ) -> None:
        super().__init__()
        small = (64, height // 4, width // 4)
        self.skip_connections = skip_connections
        self.first = (
            nn.Sequential(nn.Conv2d(channels + 1, 32, 3, padding=1), nn.ReLU()) if skip_connections else nn.Identity()
        )
        self.down1 = nn.Sequential(nn.Conv2d(32 if skip_connections else channels + 1, 32, 3, 2, 1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(
            nn.Flatten(),
            nn.Linear(int(np.prod(small)), bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, int(np.prod(small))),
            nn.ReLU(),
            nn.Unflatten(1, small),
        )
        self.up1 = nn.Sequential(nn.ConvTranspose2d(128 if skip_connections else 64, 32, 4, 2, 1), nn.ReLU())
        self.up2 = nn.Sequential(nn.ConvTranspose2d(64 if skip_connections else 32, 32, 4, 2, 1), nn.ReLU())
        self.last = nn.Conv2d(64 if skip_connections else 32, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.first(x)
        half = self.down1(whole)
        quarter = self.down2(half)
        y = self.up1(self._beside(self.middle(quarter), quarter))
        y = self.up2(self._beside(y, half))
        return self.last(self._beside(y, whole)).sigmoid()

    def _beside(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([y, x], 1) if self.skip_connections else y


def autoencoder(
    images: np.ndarray,
    seed: int,
    *,
    skip_connections: bool = False,
    steps: int = 2000,
    batch: int = 64,
    device: str = "cpu",
) -> Inpaint:
    """`Autoencoder` trained to complete images, the mean image in place of the missing pixels.

    Every batch gets fresh masks of the kinds in ``MASKS``, those of the test: what it may know beforehand, it knows.
    Squared error on all pixels, Adam, one cycle up to 2e-3; minutes on one core.
    """
    torch.manual_seed(seed)
    rng, max_level = np.random.default_rng(seed), float(images.max())
    x = _channels_first(images) / max_level
    centre = x.mean(0)
    network = Autoencoder(*x.shape[1:], skip_connections=skip_connections).to(device)
    optimizer = torch.optim.Adam(network.parameters())
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    kinds = [*MASKS.values()]
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(x), size=batch))
        drawn = np.stack([kind(batch, *images.shape[1:3], rng) for kind in kinds])
        observed = drawn[rng.integers(len(kinds), size=batch), np.arange(batch)]  # each image takes one of the kinds
        given = _given(x[rows], torch.from_numpy(observed[:, None]), centre)
        loss = ((network(given.to(device)) - x[rows].to(device)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()

    def inpaint(incomplete: np.ndarray) -> np.ndarray:
        y = _channels_first(incomplete) / max_level
        given = _given(y, ~y[:, :1].isnan(), centre)
        with torch.no_grad():
            pred = torch.cat([network(part.to(device)).cpu() for part in given.split(500)])
        values = max_level * pred.permute(0, 2, 3, 1).reshape(incomplete.shape).double().numpy()
        return np.where(np.isnan(incomplete), values, incomplete)

    return inpaint


def _channels_first(images: np.ndarray) -> torch.Tensor:
    """(n, H, W) or (n, H, W, C) -> float (n, C, H, W)."""
    return torch.from_numpy(images.reshape(*images.shape[:3], -1).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def _given(x: torch.Tensor, observed: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Input (n, C + 1, H, W): x with the mean image in its missing pixels, and ``observed`` (n, 1, H, W) below it."""
    return torch.cat([torch.where(observed, x, centre), observed.float()], 1)


def vaeimpute(images: np.ndarray, seed: int, **params: object) -> Inpaint:
    """Ours, on the images as they are."""
    return VAEImputer(image_shape=images.shape[1:], random_state=seed, **params).fit(images).impute


@torch.no_grad()
def bits_per_pixel(inpaint: Inpaint, images: np.ndarray, observed: np.ndarray) -> float:
    """Mean of -log2 p(hidden pixel | observed pixels) of complete images under `vaeimpute`; each channel counts as one.

    All hidden pixels of an image are one event: its density is averaged over the latent's draws, which bounds it from
    below.
    """
    imputer: VAEImputer = inpaint.__self__  # what inpaints is the imputer's own method
    model = imputer.ensemble_.conditional
    noise = latent_noise(model)
    values = torch.from_numpy(imputer.encoder_.encode(images).values).to(model.weights)
    mask = torch.tensor(observed.reshape(len(observed), -1), device=values.device)
    nats = 0.0
    for x, o in zip(values.split(50), mask.split(50), strict=True):
        log_px = model.likelihoods.log_prob(model.importance_samples(x[None], o[None], noise)[0], x[None, None])
        joint = torch.where(o, 0, log_px).double().sum(-1)
        nats -= (torch.logsumexp(joint, 1) - math.log(len(noise))).sum().item()
    return nats / math.log(2) / int((~observed).sum())


PEERS: dict[str, Peer] = {
    "mean": Peer(mean),
    "knn": Peer(knn),
    "ppca": Peer(ppca),
    "iterative": Peer(iterative, max_pixels=100),  # a regression for each pixel
    "biharmonic": Peer(biharmonic),
    "conv-ae": Peer(autoencoder),
    "unet": Peer(partial(autoencoder, skip_connections=True)),
    "vaeimpute": Peer(vaeimpute, bits=bits_per_pixel),
}


# --- finding anomalies ------------------------------------------------------------------------------------------------


def scoring_rows(fit: Callable[[np.ndarray, int], Score]) -> Callable[[np.ndarray, int], Score]:
    """Give a method rows of pixels."""

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


def detector(images: np.ndarray, seed: int, **params: object) -> Score:
    """Ours, on the images as they are."""
    return VAEOutlierDetector(image_shape=images.shape[1:], random_state=seed, **params).fit(images).anomaly_score


# (inlier images, seed, **params) -> a score of images
DETECTORS: dict[str, Callable[..., Score]] = {
    "pca": pca_residual,
    "knn": knn_distance,
    "iforest": isolation_forest,
    "vaeimpute": detector,
}
