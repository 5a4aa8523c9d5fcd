"""Strange images and strange pixels.

The likelihood of all pixels is no score of images: simple ones have few surprises, and rank as the most ordinary of
all, whatever they show (Nalisnick et al. 2019). Two others are taken together. A linear VAE reads an image as a few
numbers, and a mixture of linear VAEs says how likely these are; what the first leaves of the image is the second score.
Holes are filled by the conditional reading first. The same reading scores pixels: a tile is hidden, and what stands
there is compared with what the rest of the image lets expect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from vaeimpute.anomaly.calibration import RowCalibration, column_surprise
from vaeimpute.gaussian.factor_analysis import Linear
from vaeimpute.gaussian.mixture import Mixture, fit_mixture, log_evidence
from vaeimpute.images.fit import Held, Images, train
from vaeimpute.images.models import ConditionalImageVAE, shown
from vaeimpute.likelihoods.pixels import Pixels
from vaeimpute.training.loop import Clock, seeded

_LATENTS, _COMPONENTS, _RANK = 64, 8, 12
_ROWS_PER_COMPONENT = 200
_FLOOR = 0.02  # smallest noise variance of a latent, in units of the average one's variance
_FIT_ROWS, _FIT_CELLS = 10_000, 50_000_000  # images and pixels; more tell no more about a few directions
_HELD_OUT, _MOST_HELD_OUT = 0.2, 1000  # share and number of images that only say what ordinary ones score
_FEWEST = 10  # images; below, all train the network and check it
_CROSSED, _FOLDS = 1000, 5  # below so many images all are held out, in turn
_EFFORT = 0.15  # of an imputer's training: pixels are scored, not filled in
_TILES, _SMALLEST_TILE = 7, 3  # along the longer side, and pixels: smaller ones, and a defect excuses itself
_STRANGE = 5.0  # nats by which a pixel is stranger than ordinary ones before it has no say in the others
_CELLS = 2**21  # parameters held at once
_SURPRISES = 100  # images whose pixels say what is ordinary
_REGIONS = 4  # along each side, whose shares of observed pixels stand for the mask


class ImageMixture(NamedTuple):
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
    mixture: Mixture

    def parts(self, filled: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the latents (n,), and squared residual summed over the observed pixels (n,)."""
        latents, left = [], []
        for rows in torch.arange(len(filled), device=filled.device).split(max(1, _CELLS // filled.shape[1])):
            centred = filled[rows].double() - self.center
            latents.append(centred @ self.basis)
            left.append(torch.where(observed[rows], centred - latents[-1] @ self.basis.T, 0).square().sum(-1))
        z = torch.cat(latents)
        return log_evidence(z / self.unit, torch.ones_like(z, dtype=torch.bool), self.mixture)[0], torch.cat(left)


class ImageDensity(NamedTuple):
    """What a detector of strange images and pixels has learnt.

    Attributes
    ----------
    model : ConditionalImageVAE
    rows : ImageMixture
    surprise : Tensor of shape (D,)
        Average negative log-density of ordinary images' pixels.
    """

    model: ConditionalImageVAE
    rows: ImageMixture
    surprise: Tensor

    @property
    def n_components(self) -> int:
        """Components of the mixture."""
        return self.rows.mixture.log_weight.shape[1]

    @property
    def likelihoods(self) -> Pixels:
        """Of the pixels."""
        return self.model.likelihoods

    @property
    def weights(self) -> Tensor:
        """Any tensor that has the dtype and the device to compute with."""
        return self.model.weights

    def mask(self, observed: Tensor) -> np.ndarray:
        """What scores depend on besides the values: the share of observed pixels in each region, (n, 16)."""
        return coverage(observed, self.model.config.shape)

    def row_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        """Both scores of each image, (2, 1, n)."""
        return row_scores(self.rows, self.model, values, observed)

    def log_likelihood(self, values: Tensor, observed: Tensor) -> Tensor:
        """Log-density of each image under the mixture (n,), in nats."""
        return log_likelihood(self.rows, self.model, values, observed)

    def cells(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Expected pixels and scores, (n, D)."""
        return scored_pixels(self.model, self.surprise, values, observed)


def fit_density(
    images: Images, *, seed: int, dtype: torch.dtype, trimmed: float = 0.0
) -> tuple[ImageDensity, RowCalibration, bool]:
    """Train the conditional reading, fit the mixture, and learn what images score that neither has seen.

    Parameters
    ----------
    images : Images
    seed : int
    dtype : torch.dtype
        Of the networks.
    trimmed : float
        Share of the strangest images to leave out of the mixture, where some may be outliers.
    """
    device = images.values.device
    with seeded(seed):
        fitted, held = (rows.to(device) for rows in split(len(images.values), seed))
        seen = images._replace(values=images.values[fitted], observed=images.observed[fitted])
        clock = Clock()
        model, _ = train(ConditionalImageVAE, "conditional", seen, Held.choose(seen), dtype, clock, effort=_EFFORT)
        rows, calibration = fit_rows(model, images, seed=seed, trimmed=trimmed)
        surprise = pixel_surprise(model, images.values[held], images.observed[held])
    return ImageDensity(model, rows, surprise), calibration, clock.interrupted


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit to, and rows that only say what ordinary images score; all for both if they are few."""
    order = torch.as_tensor(np.random.default_rng(seed).permutation(n))
    n_held = min(_MOST_HELD_OUT, int(_HELD_OUT * n)) if n >= _FEWEST else 0
    return order[n_held:], order[:n_held] if n_held else order


def fit_rows(
    model: ConditionalImageVAE, images: Images, *, seed: int, trimmed: float = 0.0
) -> tuple[ImageMixture, RowCalibration]:
    """Fit the mixture of whole images to some, and learn from others what ordinary ones score.

    Parameters
    ----------
    model : ConditionalImageVAE
        Fills the holes.
    images : Images
    seed : int
        Of the split into both, too.
    trimmed : float
        Share of the strangest images to leave out.
    """
    n, device = len(images.values), images.values.device
    n_pixels = images.values.shape[1]
    some = max(2, min(_FIT_ROWS, _FIT_CELLS // n_pixels))
    folds = _folds(n, seed)
    # One size for all folds and for the mixture of all images: scores of different sizes do not compare.
    fewest = min(some, *(len(fitted) for fitted, _ in folds))
    size = _size(_n_ordinary(fewest, trimmed), n_pixels)

    def fitted_to(rows: Tensor) -> ImageMixture:
        chosen = rows[:some].to(device)
        filled = fill(model, images.values[chosen], images.observed[chosen])
        return _fit_mixture(filled.double(), *size, seed, trimmed)

    mixtures, scores, masks, held = [], [], [], []
    with seeded(seed):
        for fitted, rows in folds:
            mixtures.append(fitted_to(fitted))
            twice = rows.to(device).repeat(2)
            observed = images.observed[twice].clone()
            again = slice(len(rows), None)  # the same images once more, with holes
            observed[again] &= shown(observed[again].unsqueeze(0), images.shape)[0]
            scores.append(row_scores(mixtures[-1], model, images.values[twice], observed)[:, 0].cpu().numpy())
            masks.append(coverage(observed, images.shape))
            held.append(rows.repeat(2).numpy())
    row = np.concatenate(held)
    mask = np.concatenate(masks)
    calibration = RowCalibration.fit(np.concatenate(scores, 1), mask, np.zeros(len(row), dtype=int), row)
    return mixtures[0] if len(folds) == 1 else fitted_to(torch.arange(n)), calibration


def _folds(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Rows to fit to, and rows that say what ordinary images score; the few of a small set all do so, in turn."""
    if n >= _CROSSED or n < 3:
        return [split(n, seed)]
    parts = torch.as_tensor(np.random.default_rng(seed).permutation(n)).chunk(min(_FOLDS, n))
    return [(torch.cat([p for p in parts if p is not part]), part) for part in parts]


def _n_ordinary(n: int, trimmed: float) -> int:
    return max(2, int((1 - trimmed) * n))


def _size(n: int, n_pixels: int) -> tuple[int, int]:
    """Latents and components that so many images tell of."""
    k = max(1, min(_LATENTS, n_pixels // 4, n // 4))
    return k, max(1, min(_COMPONENTS, n // _ROWS_PER_COMPONENT))


def _ordinary(filled: Tensor, strangeness: Tensor, trimmed: float) -> Tensor:
    return filled[strangeness.argsort()[: _n_ordinary(len(filled), trimmed)]]


def _fit_mixture(filled: Tensor, k: int, n_components: int, seed: int, trimmed: float = 0.0) -> ImageMixture:
    if trimmed:
        # Strange images that are like one another find a component, even a latent, of their own: the first to go are
        # those far from the median image, and one component ranks all images again.
        far = (filled - filled.median(0).values).square().sum(1)
        one = _fit_mixture(_ordinary(filled, far, trimmed), k, 1, seed)
        latents, left = one.parts(filled, torch.ones_like(filled, dtype=torch.bool))
        filled = _ordinary(filled, torch.stack([-latents, left]).argsort(1).argsort(1).sum(0), trimmed)
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
    stacked = Mixture(mixture.log_weight.unsqueeze(0), Linear(*(p.unsqueeze(0).contiguous() for p in mixture.linear)))
    return ImageMixture(center, basis, unit, noise.clamp(min=1e-8), stacked)


@torch.no_grad()
def fill(model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> Tensor:
    """Images (n, D) with their holes at the expected pixel, in bounded memory."""
    filled = values.to(model.weights, copy=True)
    rows = (~observed.all(1)).nonzero().squeeze(-1)
    for part in rows.split(_rows_at_once(model)):
        answers = model.answers(filled[part].unsqueeze(0), observed[part].unsqueeze(0), _middle(model))[0]
        filled[part] = torch.where(observed[part], filled[part], answers)
    return filled


def row_scores(rows: ImageMixture, model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> Tensor:
    """Both scores of each image, (2, 1, n) in float64: higher is stranger.

    The first is the negative log-likelihood of the latents, in nats, the second the log of the mean squared residual.
    """
    likelihood, left = rows.parts(fill(model, values, observed), observed)
    residual = (left / observed.sum(1).clamp(min=1) + 1e-12).log()
    return torch.stack([-likelihood, residual]).unsqueeze(1)


def log_likelihood(rows: ImageMixture, model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> Tensor:
    """Log-density of each image under the mixture (n,), in nats; the noise is that of the observed pixels."""
    latents, left = rows.parts(fill(model, values, observed), observed)
    k = rows.basis.shape[1]
    n_noise = (observed.sum(1) - k).clamp(min=0)
    return latents - k * rows.unit.log() - 0.5 * (n_noise * (2 * math.pi * rows.noise).log() + left / rows.noise)


def coverage(observed: Tensor, shape: tuple[int, int, int]) -> np.ndarray:
    """Share of observed pixels in each region of an image, (n, 16): what stands for the mask."""
    as_images = observed.float().unflatten(1, shape).mean(-1).unsqueeze(1)
    regions = (min(_REGIONS, shape[0]), min(_REGIONS, shape[1]))
    return torch.nn.functional.adaptive_avg_pool2d(as_images, regions).flatten(1).cpu().numpy()


def scored_pixels(
    model: ConditionalImageVAE, surprise: Tensor, values: Tensor, observed: Tensor
) -> tuple[Tensor, Tensor]:
    """Expected pixels and scores, (n, D): ``-log p(x_j | image without j's tile)`` less what is ordinary there.

    Strange pixels are then hidden too, and all are scored again: a defect must not excuse its own neighbours.
    """
    expected, log_density = _by_tiles(model, values, observed)
    strange = observed & (-log_density - surprise > _STRANGE)
    again = strange.any(1).nonzero().squeeze(-1)
    if len(again):
        expected[again], log_density[again] = _by_tiles(model, values[again], (observed & ~strange)[again])
    return expected, -log_density - surprise


def pixel_surprise(model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> Tensor:
    """Average negative log-density of the pixels of ordinary images, (D,)."""
    some = np.random.default_rng(0).permutation(len(values))[:_SURPRISES]
    values, observed = values[some], observed[some]
    _, log_density = _by_tiles(model, values, observed)
    surprise = column_surprise(log_density.double().cpu().numpy(), observed.cpu().numpy())
    return torch.as_tensor(surprise).to(log_density)


@torch.no_grad()
def _by_tiles(model: ConditionalImageVAE, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Expected pixels and the log-density of those there, (n, D), each with the tiles of its colour hidden."""
    values = values.to(model.weights)
    expected, log_density = torch.zeros_like(values), torch.zeros_like(values)
    for hidden in _tiles(model.config.shape, values.device):
        for rows in torch.arange(len(values), device=values.device).split(_rows_at_once(model)):
            x, o = values[rows].unsqueeze(0), (observed[rows] & ~hidden).unsqueeze(0)
            params = model.draws(x, o, _middle(model))[0][0, 0]
            expected[rows] = torch.where(hidden, model.likelihoods.answers(params), expected[rows])
            log_density[rows] = torch.where(hidden, model.likelihoods.log_prob(params, x[0]), log_density[rows])
    return model.likelihoods.points(expected), log_density


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


def _rows_at_once(model: ConditionalImageVAE) -> int:
    return max(1, _CELLS // model.cells_per_row(1))


def mixture_state(rows: ImageMixture) -> tuple[dict[str, np.ndarray], dict]:
    """A mixture as arrays, and as plain numbers (JSON): none."""
    weight, linear = rows.mixture
    tensors = rows._asdict() | {"log_weight": weight, **linear._asdict()}
    return {key: value.cpu().numpy() for key, value in tensors.items() if key != "mixture"}, {}


def mixture_from(tensors: Mapping[str, np.ndarray], header: Mapping, device: torch.device) -> ImageMixture:
    """The inverse of `mixture_state`, on any device."""
    a = {key: torch.tensor(value, device=device) for key, value in tensors.items()}
    mixture = Mixture(a["log_weight"], Linear(a["W"], a["b"], a["psi"]))
    return ImageMixture(a["center"], a["basis"], a["unit"], a["noise"], mixture)


def to_state(density: ImageDensity) -> tuple[dict[str, np.ndarray], dict]:
    """Everything that makes up a density, as arrays and as plain numbers (JSON)."""
    tensors = {f"model.{key}": value.cpu().numpy() for key, value in density.model.state_dict().items()}
    rows = {f"rows.{key}": value for key, value in mixture_state(density.rows)[0].items()}
    return tensors | rows | {"surprise": density.surprise.cpu().numpy()}, density.model.header()


def from_state(tensors: Mapping[str, np.ndarray], header: Mapping, device: torch.device) -> ImageDensity:
    """The inverse of `to_state`, on any device."""

    def below(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    surprise = torch.tensor(tensors["surprise"], device=device)
    model = ConditionalImageVAE.from_header(header).to(device, surprise.dtype)
    model.load_state_dict({key: torch.tensor(value, device=device) for key, value in below("model.").items()})
    return ImageDensity(model.eval(), mixture_from(below("rows."), {}, device), surprise)
