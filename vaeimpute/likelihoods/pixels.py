"""p(pixel | parameters): one class per family, and the product over all pixels, with the face of columns."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vaeimpute.likelihoods.distributions import normal_log_density

_COMPONENTS = 3
_LOG_SCALE = (-7.0, 1.0)  # bounds; pixels go from 0 to 1, so a scale below a quarter of a level says nothing more
_START = -2.0  # log-scale of a network that has learnt nothing


class PixelFamily(ABC):
    """The likelihood of one pixel; parameters have shape (..., n_params), pixels (...)."""

    n_params: int
    means: slice  # the parameters that move the mean
    gain, middle = 1.0, 0.0  # adding `gain (x - middle)` to them makes it about x
    mean_weight = 0.0  # of the mean's squared error in training, where the likelihood alone is slow to teach it

    def __init__(self, max_level: int) -> None:
        self.max_level = max_level

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood of each pixel, in nats."""

    @abstractmethod
    def cdf(self, params: Tensor, x: Tensor) -> Tensor:
        """Probability of a pixel that is at most x."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Expected pixel."""

    @abstractmethod
    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of each pixel."""

    def point(self, mean: Tensor) -> Tensor:
        """What stands for a pixel whose expectation is known."""
        return mean


class Bernoulli(PixelFamily):
    """Pixels that are off or on; the parameter is the logit."""

    n_params = 1
    means, gain, middle = slice(0, 1), 6.0, 0.5

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logit, x = torch.broadcast_tensors(params[..., 0], x)
        return -F.binary_cross_entropy_with_logits(logit, x, reduction="none")

    def cdf(self, params: Tensor, x: Tensor) -> Tensor:
        return torch.where(x < 1, (-params[..., 0]).sigmoid() * (x >= 0), 1)

    def mean(self, params: Tensor) -> Tensor:
        return params[..., 0].sigmoid()

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return self.mean(params).bernoulli(generator=generator)

    def point(self, mean: Tensor) -> Tensor:
        return (mean > 0.5).to(mean.dtype)


class DiscretizedLogistic(PixelFamily):
    """Pixels of ``max_level + 1`` equidistant levels in [0, 1], as 8-bit pixels are.

    A mixture of logistic distributions, each integrated over the level's interval; the first and the last level have
    all that lies beyond (Salimans et al. 2017, eq. 2). Its mean is that of the logistic clipped to [0, 1], in closed
    form: ``s (softplus(m / s) - softplus((m - 1) / s))``.
    """

    n_params = 3 * _COMPONENTS
    means, middle = slice(_COMPONENTS, 2 * _COMPONENTS), 0.5
    mean_weight = 10.0

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_weight, mean, log_scale = params.unflatten(-1, (3, _COMPONENTS)).unbind(-2)
        start = torch.linspace(0.1, 0.9, _COMPONENTS, dtype=params.dtype, device=params.device)
        return log_weight.log_softmax(-1), mean + start, (log_scale + _START).clamp(*_LOG_SCALE)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        log_weight, mean, log_scale = self._split(params)
        x = x.unsqueeze(-1)
        inverse, half = torch.exp(-log_scale), 0.5 / self.max_level
        above, below = (x - mean + half) * inverse, (x - mean - half) * inverse
        # log(sigmoid(above) - sigmoid(below)) without cancellation: the difference of two tails
        inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-2 * half * inverse))
        log_p = torch.where(x < half, F.logsigmoid(above), torch.where(x > 1 - half, F.logsigmoid(-below), inside))
        return torch.logsumexp(log_weight + log_p, -1)

    def cdf(self, params: Tensor, x: Tensor) -> Tensor:
        log_weight, mean, log_scale = self._split(params)
        edge = ((x * self.max_level).floor() + 0.5) / self.max_level  # the upper one of the last level that counts
        below = (log_weight.exp() * ((edge.unsqueeze(-1) - mean) * torch.exp(-log_scale)).sigmoid()).sum(-1)
        return torch.where(x < 1, below * (x >= 0), 1)

    def mean(self, params: Tensor) -> Tensor:
        log_weight, mean, log_scale = self._split(params)
        s = torch.exp(log_scale)
        return (log_weight.exp() * s * (F.softplus(mean / s) - F.softplus((mean - 1) / s))).sum(-1)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        log_weight, mean, log_scale = self._split(params)
        gumbel = -torch.empty_like(log_weight).exponential_(generator=generator).log()
        chosen = (log_weight + gumbel).argmax(-1, keepdim=True)
        mean, scale = mean.gather(-1, chosen).squeeze(-1), log_scale.gather(-1, chosen).squeeze(-1).exp()
        uniform = torch.empty_like(mean).uniform_(generator=generator).clamp(1e-6, 1 - 1e-6)
        return ((mean + scale * torch.logit(uniform)).clamp(0, 1) * self.max_level).round() / self.max_level


class Gaussian(PixelFamily):
    """Pixels that are real numbers, standardised."""

    n_params = 2
    means = slice(0, 1)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        return params[..., 0], params[..., 1].clamp(*_LOG_SCALE)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return normal_log_density(x, *self._split(params))

    def cdf(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = self._split(params)
        return torch.special.ndtr((x - mean) * torch.exp(-log_scale))

    def mean(self, params: Tensor) -> Tensor:
        return params[..., 0]

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_scale = self._split(params)
        return mean + torch.exp(log_scale) * torch.empty_like(mean).normal_(generator=generator)


# Kind of the pixels -> their family.
PIXELS: dict[str, type[PixelFamily]] = {"boolean": Bernoulli, "count": DiscretizedLogistic, "numeric": Gaussian}


class Pixels(nn.Module):
    """The product over all pixels, with the face that the product over columns has.

    Parameters
    ----------
    kind : str
        A key of ``PIXELS``.
    n_pixels : int
        Pixels times channels, D.
    max_level : int
        Of 8-bit pixels, the largest level.
    """

    expectation_columns: Tensor  # (D,) every pixel has one expectation

    def __init__(self, kind: str, n_pixels: int, max_level: int) -> None:
        super().__init__()
        self.kind, self.family = kind, PIXELS[kind](max_level)
        self.n_params = n_pixels * self.family.n_params
        self.register_buffer("expectation_columns", torch.arange(n_pixels), persistent=False)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """Log-likelihood of each pixel: (..., P) and (..., D) to (..., D)."""
        return self.family.log_prob(self._split(params), values)

    def cdf(self, params: Tensor, values: Tensor) -> Tensor:
        """Probability of at most that value of each pixel: (..., P) and (..., D) to (..., D)."""
        return self.family.cdf(self._split(params), values)

    def training_log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """What the training of a conditional model maximises: the log-likelihood less the mean's squared error.

        Sharp modes, black and white, rule the likelihood of 8-bit pixels; the mean, which imputes a pixel best, learns
        faster when its own error counts too, at little cost to the likelihood.
        """
        split = self._split(params)
        log_px = self.family.log_prob(split, values)
        if not self.family.mean_weight:
            return log_px
        return log_px - self.family.mean_weight * (self.family.mean(split) - values).square()

    def sample(
        self,
        params: Tensor,
        generator: torch.Generator,
        draws: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """One draw of each pixel, (..., D).

        `draws` (M, S, B) picks S among the K of the parameters (M, K, B, P); all pixels are drawn, `wanted` or not.
        """
        params = params if draws is None else params.take_along_dim(draws.unsqueeze(-1), 1)
        return self.family.sample(self._split(params), generator)

    def expectations(self, params: Tensor) -> Tensor:
        """Expected pixels, (..., D)."""
        return self.family.mean(self._split(params))

    def targets(self, values: Tensor) -> Tensor:
        """The expectations of an oracle: the pixels."""
        return values

    def point_estimates(self, expectations: Tensor) -> Tensor:
        """Pixels (..., D) from averaged expectations."""
        return self.family.point(expectations)

    @property
    def is_continuous(self) -> NDArray[np.bool_]:
        """Which pixels have a density, and not a probability, (D,)."""
        return np.full(len(self.expectation_columns), self.kind == "numeric")

    def _split(self, params: Tensor) -> Tensor:
        return params.unflatten(-1, (-1, self.family.n_params))
