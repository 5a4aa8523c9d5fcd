"""From images to their fitted readings. All defaults stand here, as functions of the number and size of the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vaeimpute.images.inpainting import smoothest
from vaeimpute.images.models import ConditionalImageVAE, ImageConfig, ImageVAE, JointImageVAE, shown
from vaeimpute.images.networks import map_sizes
from vaeimpute.training.loop import Check, Clock, Fit, Plan, fit_model, seeded
from vaeimpute.vae.inference import Ensemble, latent_noise

_WIDTHS, _HIDDEN, _LATENT = (48, 96), 256, 32
_DEPTH: dict[type[ImageVAE], int] = {JointImageVAE: 1, ConditionalImageVAE: 2}
_WIDER = 20_000  # images from which the networks have a third more channels
_CHECKED = 0.05  # share of the images that are kept from the training, to tell when to stop
_MOST_CHECKED, _LEAST_CHECKED, _FEWEST = 256, 10, 40
_MEAN_OF = 2000  # images whose mean is compared with
_PASSES = 60  # over all images at most
_FEWEST_STEPS = 300
# Floating-point operations of one training: about a minute per 6e12 on a laptop's core, and per 1e15 on a GPU.
_COST = {
    "cpu": {JointImageVAE: 8e12, ConditionalImageVAE: 3.6e13},
    "cuda": {JointImageVAE: 1e15, ConditionalImageVAE: 3e15},
}

V = TypeVar("V", bound=ImageVAE)


class Images(NamedTuple):
    """Images as tensors: values and observed (n, D), what a pixel is, and the number of its levels less one."""

    values: Tensor
    observed: Tensor
    shape: tuple[int, int, int]
    kind: str
    n_levels: int


def fit_images(
    images: Images,
    *,
    seed: int,
    dtype: torch.dtype,
    time_budget: float | None = None,
    on_check: Callable[[str, dict, int], None] = lambda reading, record, n_steps: None,
) -> tuple[Ensemble, list[dict], bool]:
    """Fit both readings to images; the parameters and what is returned are those of `fitting.fit_table`."""
    device = images.values.device
    clock = Clock(time_budget or math.inf)
    with seeded(seed):
        held = Held.choose(images)
        joint, first = train(JointImageVAE, "joint", images, held, dtype, clock, on_check, share=0.3)
        conditional, second = train(ConditionalImageVAE, "conditional", images, held, dtype, clock, on_check)
    # A latent alone cannot say what the pixels around a hole do: the conditional reading answers for all pixels.
    pixels = torch.ones(images.values.shape[1], dtype=dtype, device=device)
    history = [
        {"reading": name, **record}
        for name, fit in (("joint", first), ("conditional", second))
        for record in fit.history
    ]
    return Ensemble(joint, conditional, 0 * pixels, pixels), history, clock.interrupted


class Held(NamedTuple):
    """Images for the training, and others with holes of the kinds that it makes, to check it."""

    trained: Tensor  # their rows
    checked: Tensor
    seen: Tensor  # (1, n_checked, D)

    @classmethod
    def choose(cls, images: Images) -> Held:
        """A small share of the images, or all of them if they are few."""
        n, device = len(images.values), images.values.device
        order = torch.randperm(n, device=device)
        n_checked = min(_MOST_CHECKED, max(_LEAST_CHECKED, int(_CHECKED * n))) if n >= _FEWEST else 0
        checked, trained = order[:n_checked], order[n_checked:]
        if n_checked == 0:
            checked = order[:_MOST_CHECKED]
        observed = images.observed[checked].unsqueeze(0)
        return cls(trained, checked, observed & shown(observed, images.shape))


def train(
    kind: type[V],
    name: str,
    images: Images,
    held: Held,
    dtype: torch.dtype,
    clock: Clock,
    on_check: Callable[[str, dict, int], None] = lambda reading, record, n_steps: None,
    share: float = 1.0,
    effort: float = 1.0,
) -> tuple[V, Fit]:
    """Train one reading.

    `share` is that of the clock's budget after which it must be done, `effort` the number of its steps beside those of
    an imputer.
    """
    device = images.values.device
    smooth = kind is ConditionalImageVAE and _are_smooth(images, held)
    model = kind(_config(kind, images, smooth)).to(device, dtype)
    plan = _plan(model, len(images.values), effort)
    noise = latent_noise(model, 2)
    values = images.values[held.checked].to(dtype)
    check = Check(values, held.seen, images.observed[held.checked] & ~held.seen, noise, one_unit=True)

    def report(record: dict) -> None:
        on_check(name, record, plan.steps)

    trained = images.values[held.trained].to(dtype), images.observed[held.trained].unsqueeze(0)
    return model, fit_model(model, *trained, check, [plan], clock=clock, share=share, on_check=report)


def _are_smooth(images: Images, held: Held) -> bool:
    """Whether the smoothest image through some pixels says more of the others than the mean image does."""
    some = held.trained[:_MEAN_OF]
    mean = images.values[some].sum(0) / images.observed[some].sum(0).clamp(min=1)  # values of holes are zero
    values, seen = images.values[held.checked], held.seen[0]
    asked = images.observed[held.checked] & ~seen
    smooth = smoothest(values, seen, images.shape).permute(0, 2, 3, 1).flatten(1)
    error, errors_of_mean = ((guess - values).square()[asked].sum() for guess in (smooth, mean))
    return bool(error < errors_of_mean)


def _config(kind: type[ImageVAE], images: Images, smooth: bool) -> ImageConfig:
    n = len(images.values)
    widths = tuple(w * 4 // 3 if n >= _WIDER else w for w in _WIDTHS)
    dropout = 0.1 if n < _WIDER else 0.0
    sizes = (_DEPTH[kind], _HIDDEN, _LATENT, dropout)
    return ImageConfig(images.shape, images.kind, images.n_levels, widths, *sizes, smooth)


def _plan(model: ImageVAE, n: int, effort: float) -> Plan:
    gpu = model.weights.device.type == "cuda"
    batch_size = 256 if gpu else 64
    cost = effort * _COST["cuda" if gpu else "cpu"][type(model)]
    affordable = cost / (batch_size * _operations(model.config))
    steps = int(max(_FEWEST_STEPS, min(affordable, effort * _PASSES * n / batch_size)))
    return Plan(steps, batch_size, 2e-3, patience=5, check_every=max(50, steps // 10))


def _operations(config: ImageConfig) -> float:
    """Floating-point operations of the blocks' convolutions, both ways and back, for one image."""
    sizes = map_sizes(*config.shape[:2])
    widths = [config.widths[min(i, len(config.widths) - 1)] for i in range(len(sizes))]
    products = sum(h * w * c**2 for (h, w), c in zip(sizes, widths, strict=True))
    return 6 * 9 * 2 * config.depth * 2 * products
