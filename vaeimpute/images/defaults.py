"""Every default of the models of images and their training, as functions of the number and the size of the images."""

from __future__ import annotations

from vaeimpute.images.data import Images
from vaeimpute.images.models import ConditionalImageVAE, ImageVAE, JointImageVAE, Sizes
from vaeimpute.images.networks import map_sizes, widths_of
from vaeimpute.training.schedule import Schedule

_WIDTHS, _HIDDEN, _LATENT = (48, 96), 256, 32
_DEPTH: dict[type[ImageVAE], int] = {JointImageVAE: 1, ConditionalImageVAE: 2}
_WIDER = 20_000  # images from which the networks have a third more channels
_VALIDATION = 0.05  # share of the images that are kept from the training, to tell when to stop
_MOST_VALIDATION, _LEAST_VALIDATION, _FEWEST = 256, 10, 40
_PASSES = 60  # over all images at most
_FEWEST_STEPS = 300
# Floating-point operations of one training: about a minute per 6e12 on a laptop's core, and per 1e15 on a GPU.
_COST = {
    "cpu": {JointImageVAE: 8e12, ConditionalImageVAE: 3.6e13},
    "cuda": {JointImageVAE: 1e15, ConditionalImageVAE: 3e15},
}


def n_validation(n: int) -> tuple[int, int]:
    """How many of n images are kept from the training, and how many tell when it ends: of few images all do both."""
    n_kept = min(_MOST_VALIDATION, max(_LEAST_VALIDATION, int(_VALIDATION * n))) if n >= _FEWEST else 0
    return n_kept, n_kept or min(n, _MOST_VALIDATION)


def sizes(kind: type[ImageVAE], images: Images, *, inpaints: bool) -> Sizes:
    """Sizes of a model of these images."""
    n = len(images.values)
    widths = tuple(w * 4 // 3 if n >= _WIDER else w for w in _WIDTHS)
    dropout = 0.1 if n < _WIDER else 0.0
    numbers = (_DEPTH[kind], _HIDDEN, _LATENT, dropout)
    return Sizes(images.shape, images.kind, images.max_level, widths, *numbers, inpaints)


def schedule(model: ImageVAE, n: int, effort: float) -> Schedule:
    """How a model of n images is trained; `effort` is the number of its steps beside those of an imputer."""
    gpu = model.weights.device.type == "cuda"
    batch_size = 256 if gpu else 64
    cost = effort * _COST["cuda" if gpu else "cpu"][type(model)]
    affordable = cost / (batch_size * _operations(model.sizes))
    steps = int(max(_FEWEST_STEPS, min(affordable, effort * _PASSES * n / batch_size)))
    return Schedule(steps, batch_size, 2e-3, patience=5, refit=0.0, evaluate_every=max(50, steps // 10))


def _operations(sizes: Sizes) -> float:
    """Floating-point operations of the blocks' convolutions, both ways and back, for one image."""
    maps = map_sizes(*sizes.shape[:2])
    products = sum(h * w * c**2 for (h, w), c in zip(maps, widths_of(maps, sizes.widths), strict=True))
    return 6 * 9 * 2 * sizes.depth * 2 * products
