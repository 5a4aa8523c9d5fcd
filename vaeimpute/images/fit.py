"""From images to their fitted models."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from vaeimpute.anomaly.density import FittedModels
from vaeimpute.images import defaults
from vaeimpute.images.data import Images
from vaeimpute.images.density import fit_density, split
from vaeimpute.images.inpainting import inpaint
from vaeimpute.images.masking import random_mask
from vaeimpute.images.models import ConditionalImageVAE, ImageVAE, JointImageVAE
from vaeimpute.training.loop import TrainingResult, Validation, fit_model
from vaeimpute.training.runtime import OnEvaluation, make_generator
from vaeimpute.training.schedule import TimeBudget, shortened
from vaeimpute.vae.base import Batch
from vaeimpute.vae.inference import Ensemble, latent_noise

_JOINT_SHARE = 0.3  # of a time budget, after which the joint model's training must be done
_MEAN_OF = 2000  # images whose mean is compared with
_EVALUATION_DRAWS = 2
_FULL_EFFORT = 2.0  # number of steps beside those of a default fit
_DETECTOR_EFFORT = 0.15  # of an imputer's training: pixels are scored, not filled in

M = TypeVar("M", bound=ImageVAE)


def fit_imputer(
    images: Images,
    *,
    seed: int,
    dtype: torch.dtype,
    effort: str = "auto",
    time_budget: float | None = None,
    max_iter: int | None = None,
    on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
) -> FittedModels:
    """Fit both models to images, and learn what images and pixels score under them.

    Parameters
    ----------
    images : Images
        On the device that shall do the work.
    seed : int
    dtype : torch.dtype
        Of the networks.
    effort : {"auto", "full"}
        "full" takes twice as many steps.
    time_budget : float, optional
        Seconds after which the best so far is returned.
    max_iter : int, optional
        Largest number of training steps of each model.
    on_evaluation : callable
        Receives the model's name, the newest record of its history and the number of its steps.
    """
    training = _Training(images, seed, dtype, TimeBudget(time_budget), max_iter, on_evaluation)
    times = _FULL_EFFORT if effort == "full" else 1.0
    joint, first = training.train(JointImageVAE, "joint", share=_JOINT_SHARE, effort=times)
    conditional, second = training.train(ConditionalImageVAE, "conditional", effort=times)
    # A latent alone cannot say what the pixels around a missing one do: the conditional model imputes all pixels.
    pixels = torch.ones(images.values.shape[1], dtype=dtype, device=images.values.device)
    ensemble = Ensemble(joint, conditional, stacking_weight=0 * pixels)
    density = fit_density(conditional, images, torch.arange(len(images.values), device=pixels.device), seed=seed)
    return FittedModels(density, ensemble, (*first.history, *second.history), training.budget.interrupted)


def fit_detector(images: Images, *, seed: int, dtype: torch.dtype, robust: bool = False) -> FittedModels:
    """Train the conditional model, and learn what images and pixels score that it has not seen.

    Parameters
    ----------
    images : Images
    seed : int
    dtype : torch.dtype
        Of the networks.
    robust : bool
        Whether some images may be outliers.
    """
    fitted, held = (rows.to(images.values.device) for rows in split(len(images.values), seed))
    seen = images._replace(values=images.values[fitted], observed=images.observed[fitted])
    training = _Training(seen, seed, dtype, TimeBudget())
    model, _ = training.train(ConditionalImageVAE, "conditional", effort=_DETECTOR_EFFORT)
    density = fit_density(model, images, held, seed=seed, robust=robust)
    return FittedModels(density, interrupted=training.budget.interrupted)


class _Split(NamedTuple):
    """Images for the training, and others with missing pixels of the sorts that it makes, to tell when to stop."""

    trained: Tensor  # their rows
    validated: Tensor
    visible: Tensor  # (1, n_validated, D)


class _Training:
    """What the trainings of both models have in common."""

    def __init__(
        self,
        images: Images,
        seed: int,
        dtype: torch.dtype,
        budget: TimeBudget,
        max_iter: int | None = None,
        on_evaluation: OnEvaluation = lambda model, record, n_steps: None,
    ) -> None:
        self.images, self.dtype, self.budget = images, dtype, budget
        self.max_iter, self.on_evaluation = max_iter, on_evaluation
        self.init, self.generator = make_generator(seed), make_generator(seed, images.values.device)
        self.split = _split(images, self.generator)

    def train(self, kind: type[M], name: str, *, share: float = 1.0, effort: float = 1.0) -> tuple[M, TrainingResult]:
        """Train one model.

        `share` is that of the budget after which it must be done, `effort` the number of its steps beside those of an
        imputer.
        """
        images, dtype = self.images, self.dtype
        inpaints = kind is ConditionalImageVAE and _inpainting_helps(images, self.split)
        model = kind(defaults.sizes(kind, images, inpaints=inpaints), self.init).to(images.values.device, dtype)
        (schedule,) = shortened([defaults.schedule(model, len(images.values), effort)], self.max_iter)
        values, observed = images.values[self.split.trained].to(dtype), images.observed[self.split.trained]

        def get_batch(size: int, generator: Generator) -> Batch:
            rows = torch.randint(len(values), (1, size), device=values.device, generator=generator)
            return Batch(values[rows], observed[rows])

        validated, visible = self.split.validated, self.split.visible
        hidden = images.observed[validated] & ~visible
        noise = latent_noise(model, _EVALUATION_DRAWS)
        validation = Validation(images.values[validated].to(dtype), visible, hidden, noise, one_unit=True)
        options: dict[str, Any] = {"generator": self.generator, "budget": self.budget}
        options |= {"name": name, "share": share, "on_evaluation": self.on_evaluation}
        return model, fit_model(model, get_batch, validation, [schedule], **options)


def _split(images: Images, generator: Generator) -> _Split:
    """A small share of the images decides, or all of them if they are few."""
    n, device = len(images.values), images.values.device
    order = torch.randperm(n, device=device, generator=generator)
    n_kept, n_validated = defaults.n_validation(n)
    validated = order[:n_validated]
    visible = random_mask(images.observed[validated].unsqueeze(0), images.shape, generator)
    return _Split(order[n_kept:], validated, visible)


def _inpainting_helps(images: Images, split: _Split) -> bool:
    """Whether the inpainted image says more of hidden pixels than the mean image does."""
    some = split.trained[:_MEAN_OF]
    mean = images.values[some].sum(0) / images.observed[some].sum(0).clamp(min=1)  # values of missing pixels are zero
    values, visible = images.values[split.validated], split.visible[0]
    hidden = images.observed[split.validated] & ~visible
    inpainted = inpaint(values, visible, images.shape).permute(0, 2, 3, 1).flatten(1)
    error, error_of_mean = ((guess - values).square()[hidden].sum() for guess in (inpainted, mean))
    return bool(error < error_of_mean)
