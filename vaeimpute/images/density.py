"""A density of images and pixels.

The likelihood of all pixels is no score of images: simple ones have few unlikely pixels, and rank as the most normal of
all, whatever they show (Nalisnick et al. 2019). Two others are taken together. A linear VAE reads an image as a few
numbers, and a mixture of linear VAEs gives the likelihood of these; what the first leaves of the image is the second
score. Missing pixels are imputed by the conditional model first. The same model scores pixels: a tile is hidden, and
what stands there is compared with what the rest of the image lets expect.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from vaeimpute.anomaly.calibration import CellCalibration, RowCalibration, baseline_nll
from vaeimpute.anomaly.density import CellPredictions, Density
from vaeimpute.batching import row_slices
from vaeimpute.gaussian.mixture import Mixture, fit_mixture, log_likelihood
from vaeimpute.gaussian.trimmed import trimmed_share
from vaeimpute.images.data import Images
from vaeimpute.images.masking import observed_fraction, random_mask
from vaeimpute.images.models import ConditionalImageVAE
from vaeimpute.persistence import Fitted
from vaeimpute.training.runtime import make_generator

_LATENTS, _COMPONENTS, _RANK = 64, 8, 12
_ROWS_PER_COMPONENT = 200
_FLOOR = 0.02  # smallest noise variance of a latent, in units of the average one's variance
_FIT_ROWS, _FIT_CELLS = 10_000, 50_000_000  # images and pixels; more tell no more about a few directions
_HELD_OUT, _MOST_HELD_OUT = 0.2, 1000  # share and number of images that only tell what normal ones score
_FEWEST = 10  # images; below, all are fitted to and score
_CROSSED, _FOLDS = 1000, 5  # below so many images all are held out, in turn
_TILES, _SMALLEST_TILE = 7, 3  # along the longer side, and pixels: smaller ones, and a defect excuses itself
_OUTLYING = 5.0  # nats by which a pixel is less likely than normal ones before it is taken for wrong
_BASELINE_IMAGES = 100  # whose pixels tell what is normal


class ImageMixture(Fitted):
    """A linear VAE of whole images, and a mixture of linear VAEs of its latents.

    Attributes
    ----------
    center, basis : Tensor of shape (D,), (D, k)
        ``x = center + basis z`` and noise.
    unit : Tensor
        Standard deviation of an average latent.
    noise : Tensor
        Variance of what the latents leave of a pixel.
    mixture : Mixture
        Of ``z / unit``, a single stack (1, C, k, L).
    """

    center: Tensor
    basis: Tensor
    unit: Tensor
    noise: Tensor

    buffer_names = ("center", "basis", "unit", "noise")

    def __init__(self, mixture: Mixture, **buffers: Tensor) -> None:
        super().__init__(**buffers)
        self.mixture = mixture

    def parts(self, filled: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the latents (n,), and squared residual summed over the observed pixels (n,)."""
        latents, left = [], []
        for rows in row_slices(len(filled), filled.shape[1]):
            centred = filled[rows].double() - self.center
            latents.append(centred @ self.basis)
            left.append(torch.where(observed[rows], centred - latents[-1] @ self.basis.T, 0).square().sum(-1))
        z = torch.cat(latents)
        return log_likelihood(z / self.unit, torch.ones_like(z, dtype=torch.bool), self.mixture)[0], torch.cat(left)


class ImageDensity(Density):
    """What a conditional model and a mixture of whole images tell of images and pixels.

    Parameters
    ----------
    model : ConditionalImageVAE
        Imputes missing pixels, and expects hidden ones.
    rows : ImageMixture
    baseline : Tensor of shape (D,)
        Average negative log-likelihood of normal images' pixels.
    """

    baseline: Tensor

    buffer_names = ("baseline",)

    def __init__(
        self,
        model: ConditionalImageVAE,
        rows: ImageMixture,
        row_calibration: RowCalibration | None = None,
        cell_calibration: CellCalibration | None = None,
        baseline: Tensor | None = None,
    ) -> None:
        super().__init__(row_calibration, cell_calibration, baseline=baseline)
        self.model, self.rows = model, rows
        self.likelihoods = model.likelihoods

    @property
    def weights(self) -> Tensor:
        return self.model.weights

    @property
    def n_components(self) -> int:
        """Components of the mixture."""
        return self.rows.mixture.log_weight.shape[1]

    def mask(self, observed: Tensor) -> NDArray:
        """What scores depend on besides the values: the share of observed pixels in each region, (n, 16)."""
        return observed_fraction(observed, self.model.sizes.shape).cpu().numpy()

    def log_likelihood(self, values: Tensor, observed: Tensor) -> Tensor:
        """Log-density of each image under the mixture (n,), in nats; the noise is that of the observed pixels."""
        latents, left = self.rows.parts(impute(self.model, values, observed), observed)
        k, unit, noise = self.rows.basis.shape[1], self.rows.unit, self.rows.noise
        n_noise = (observed.sum(1) - k).clamp(min=0)
        return latents - k * unit.log() - 0.5 * (n_noise * (2 * math.pi * noise).log() + left / noise)

    def row_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        """Both scores of each image, (2, 1, n): negative log-likelihood of the latents, log of the mean residual."""
        return _row_scores(self.rows, self.model, values, observed)

    def cell_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        return self.predict_cells(values, observed).scores

    def predict_cells(self, values: Tensor, observed: Tensor) -> CellPredictions:
        """Expected pixels and scores, (n, D): ``-log p(x_j | image without j's tile)`` less what is normal there.

        Outlying pixels are then hidden too, and all are scored again: a defect must not excuse its own neighbours.
        """
        expected, log_px = _by_tiles(self.model, values, observed)
        outlying = observed & (-log_px - self.baseline > _OUTLYING)
        again = outlying.any(1).nonzero().squeeze(-1)
        if len(again):
            expected[again], log_px[again] = _by_tiles(self.model, values[again], (observed & ~outlying)[again])
        scores = -log_px - self.baseline
        return CellPredictions(expected, scores, scores - _OUTLYING)


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit to, and rows that only tell what normal images score; all for both if they are few."""
    order = torch.as_tensor(np.random.default_rng(seed).permutation(n))
    n_held = min(_MOST_HELD_OUT, int(_HELD_OUT * n)) if n >= _FEWEST else 0
    return order[n_held:], order[:n_held] if n_held else order


def fit_density(
    model: ConditionalImageVAE, images: Images, scored: Tensor, *, seed: int, robust: bool = False
) -> ImageDensity:
    """Fit the mixture of whole images to some, and learn from others what normal images and pixels score.

    Parameters
    ----------
    model : ConditionalImageVAE
        Imputes missing pixels.
    images : Images
    scored : int Tensor
        Rows whose pixels tell what is normal.
    seed : int
        Of the split of images, too.
    robust : bool
        Whether some images may be outliers.
    """
    trimmed = trimmed_share(len(images.values)) if robust else 0.0
    rows, row_calibration = _fit_rows(model, images, seed, trimmed)
    some = scored[torch.as_tensor(np.random.default_rng(0).permutation(len(scored))[:_BASELINE_IMAGES]).to(scored)]
    values, observed = images.values[some], images.observed[some]
    _, log_px = _by_tiles(model, values, observed)
    baseline = baseline_nll(log_px.double().cpu().numpy(), observed.cpu().numpy())
    density = ImageDensity(model, rows, row_calibration, baseline=torch.as_tensor(baseline).to(log_px))
    scores = density.cell_scores(values, observed)[observed]
    density.cell_calibration = CellCalibration.fit(scores.double().cpu().numpy())
    return density


def _fit_rows(
    model: ConditionalImageVAE, images: Images, seed: int, trimmed: float
) -> tuple[ImageMixture, RowCalibration]:
    n, device = len(images.values), images.values.device
    n_pixels = images.values.shape[1]
    some = max(2, min(_FIT_ROWS, _FIT_CELLS // n_pixels))
    folds = _folds(n, seed)
    # One size for all folds and for the mixture of all images: scores of different sizes do not compare.
    fewest = min(some, *(len(fitted) for fitted, _ in folds))
    size = _size(_n_inliers(fewest, trimmed), n_pixels)
    generator = make_generator(seed, device)

    def fitted_to(rows: Tensor) -> ImageMixture:
        chosen = rows[:some].to(device)
        filled = impute(model, images.values[chosen], images.observed[chosen])
        return _fit_mixture(filled.double(), *size, seed, trimmed)

    mixtures, scores, masks, held = [], [], [], []
    for fitted, rows in folds:
        mixtures.append(fitted_to(fitted))
        twice = rows.to(device).repeat(2)
        observed = images.observed[twice].clone()
        again = slice(len(rows), None)  # the same images once more, with missing pixels
        observed[again] = random_mask(observed[again].unsqueeze(0), images.shape, generator)[0]
        scores.append(_row_scores(mixtures[-1], model, images.values[twice], observed)[:, 0].cpu().numpy())
        masks.append(observed_fraction(observed, images.shape).cpu().numpy())
        held.append(rows.repeat(2).numpy())
    row, mask = np.concatenate(held), np.concatenate(masks)
    calibration = RowCalibration.fit(np.concatenate(scores, 1), mask, np.zeros(len(row), dtype=int), row)
    return mixtures[0] if len(folds) == 1 else fitted_to(torch.arange(n)), calibration


def _folds(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Rows to fit to, and rows that tell what normal images score; the few of a small set all do so, in turn."""
    if n >= _CROSSED or n < 3:
        return [split(n, seed)]
    parts = torch.as_tensor(np.random.default_rng(seed).permutation(n)).chunk(min(_FOLDS, n))
    return [(torch.cat([p for p in parts if p is not part]), part) for part in parts]


def _n_inliers(n: int, trimmed: float) -> int:
    return max(2, int((1 - trimmed) * n))


def _size(n: int, n_pixels: int) -> tuple[int, int]:
    """Latents and components that so many images tell of."""
    k = max(1, min(_LATENTS, n_pixels // 4, n // 4))
    return k, max(1, min(_COMPONENTS, n // _ROWS_PER_COMPONENT))


def _inliers(filled: Tensor, score: Tensor, trimmed: float) -> Tensor:
    return filled[score.argsort()[: _n_inliers(len(filled), trimmed)]]


def _fit_mixture(filled: Tensor, k: int, n_components: int, seed: int, trimmed: float = 0.0) -> ImageMixture:
    if trimmed:
        # Outliers that are like one another find a component, even a latent, of their own: the first to go are those
        # far from the median image, and one component ranks all images again.
        far = (filled - filled.median(0).values).square().sum(1)
        one = _fit_mixture(_inliers(filled, far, trimmed), k, 1, seed)
        latents, left = one.parts(filled, torch.ones_like(filled, dtype=torch.bool))
        filled = _inliers(filled, torch.stack([-latents, left]).argsort(1).argsort(1).sum(0), trimmed)
    n, n_pixels = filled.shape
    center = filled.mean(0)
    centred = filled - center
    directions = randomized_svd(centred.cpu().numpy(), k, random_state=seed)[2]
    basis = torch.as_tensor(directions.T.copy()).to(filled)
    z = centred @ basis
    noise = (centred - z @ basis.T).square().sum() / max(n * (n_pixels - k), 1)
    unit = z.square().mean().sqrt().clamp(min=1e-6)
    observed = torch.ones_like(z, dtype=torch.bool)
    mixture = fit_mixture(z / unit, observed, n_components, min(_RANK, max(1, k - 1)), _FLOOR, seed=seed)
    return ImageMixture(Mixture.stack([mixture]), center=center, basis=basis, unit=unit, noise=noise.clamp(min=1e-8))


@torch.no_grad()
def impute(model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> Tensor:
    """Images (n, D) with their missing pixels at the expected one, by the latent's mean, in bounded memory."""
    filled = values.to(model.weights, copy=True)
    incomplete = (~observed.all(1)).nonzero().squeeze(-1)
    for part in row_slices(len(incomplete), model.numbers_per_row(1)):
        rows = incomplete[part]
        expected = model.expectations(filled[rows].unsqueeze(0), observed[rows].unsqueeze(0), _middle(model))[0]
        filled[rows] = torch.where(observed[rows], filled[rows], expected)
    return filled


def _row_scores(rows: ImageMixture, model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> Tensor:
    likelihood, left = rows.parts(impute(model, values, observed), observed)
    residual = (left / observed.sum(1).clamp(min=1) + 1e-12).log()
    return torch.stack([-likelihood, residual]).unsqueeze(1)


@torch.no_grad()
def _by_tiles(model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Expected pixels and the log-likelihood of those there, (n, D), each with the tiles of its colour hidden."""
    values = values.to(model.weights)
    expected, log_px = torch.zeros_like(values), torch.zeros_like(values)
    for hidden in _tiles(model.sizes.shape, values.device):
        for rows in row_slices(len(values), model.numbers_per_row(1)):
            x, o = values[rows].unsqueeze(0), (observed[rows] & ~hidden).unsqueeze(0)
            params = model.importance_samples(x, o, _middle(model))[0][0, 0]
            expected[rows] = torch.where(hidden, model.likelihoods.expectations(params), expected[rows])
            log_px[rows] = torch.where(hidden, model.likelihoods.log_prob(params, x[0]), log_px[rows])
    return model.likelihoods.point_estimates(expected), log_px


def _tiles(shape: tuple[int, int, int], device: torch.device) -> list[Tensor]:
    """Four masks (D,), each of the tiles of one colour: no two that touch have the same."""
    height, width, channels = shape
    side = max(_SMALLEST_TILE, round(max(height, width) / _TILES))
    row, column = torch.meshgrid(
        torch.arange(height, device=device) // side, torch.arange(width, device=device) // side, indexing="ij"
    )
    colour = (2 * (row % 2) + column % 2).flatten().repeat_interleave(channels)
    return [colour == c for c in range(4) if (colour == c).any()]


def _middle(model: ConditionalImageVAE) -> Tensor:
    """The latent's mean, as the only draw (1, L)."""
    return model.weights.new_zeros(1, model.n_latent)
