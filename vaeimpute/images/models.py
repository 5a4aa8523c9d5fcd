"""The two readings of images: masked VAEs whose networks are convolutions and whose columns are pixels.

Values and masks come as columns (M, B, D) with D = H W C in this order, as a table's do; M is one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from vaeimpute.images.inpainting import smoothest
from vaeimpute.images.networks import Painter, Seer, lowered
from vaeimpute.likelihoods.pixels import Pixels
from vaeimpute.vae import objective
from vaeimpute.vae.base import Reading

_SCALES = (-6.0, 3.0)  # bounds of the log-scale of a latent


@dataclass(frozen=True)
class ImageConfig:
    """Sizes of a model, in plain numbers (JSON in and out)."""

    shape: tuple[int, int, int]  # height, width, channels
    kind: str  # of the pixels
    n_levels: int
    widths: tuple[int, ...]
    depth: int
    hidden: int
    n_latent: int
    dropout: float
    smooth: bool  # whether the conditional reading starts at the smoothest image through the kept pixels


class ImageVAE(Reading):
    """A masked VAE over the pixels of images.

    Parameters
    ----------
    config : ImageConfig
    """

    n_members = 1
    likelihoods: Pixels

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config, self.n_latent = config, config.n_latent
        height, width, channels = config.shape
        self.likelihoods = Pixels(config.kind, height * width * channels, config.n_levels)

    @property
    def weights(self) -> Tensor:
        return next(self.parameters())

    @abstractmethod
    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        """Mean of the proposal ``q(z | x_O)``, (M, B, L)."""

    def header(self) -> dict:
        return {"config": asdict(self.config)}

    @classmethod
    def from_header(cls, header: Mapping) -> Self:
        config = header["config"]
        return cls(ImageConfig(**config | {"shape": tuple(config["shape"]), "widths": tuple(config["widths"])}))

    def _seer(self, n_seen: int | None = None, share: float = 1.0, depth: int | None = None) -> Seer:
        """A network that sees pixels and which of them are observed, or `n_seen` channels."""
        height, width, channels = self.config.shape
        widths = [max(8, int(share * w)) for w in self.config.widths]
        depth = self.config.depth if depth is None else depth
        return Seer(height, width, n_seen or 2 * channels, widths, depth, self.config.hidden, self.config.dropout)

    def _painter(self, n_in: int, sees: bool) -> Painter:
        height, width, channels = self.config.shape
        n_out, config = channels * self.likelihoods.family.n_params, self.config
        return Painter(height, width, n_out, n_in, config.widths, config.depth, config.dropout, sees)

    def _picture(self, values: Tensor, observed: Tensor) -> Tensor:
        """What a network is shown: (1, B, D) to (B, 2 C, H, W), hidden pixels zero, and which are observed."""
        o = observed.to(values.dtype)
        both = torch.stack([torch.where(observed, values, 0), o], -1).squeeze(0)
        return both.unflatten(1, self.config.shape).flatten(3).permute(0, 3, 1, 2)

    def _as_params(self, painted: Tensor) -> Tensor:
        """(B, C n, H, W) to the parameters of pixels in the order of the columns, (B, P)."""
        return painted.to(self.weights.dtype).unflatten(1, (self.config.shape[2], -1)).permute(0, 3, 4, 1, 2).flatten(1)


class JointImageVAE(ImageVAE):
    """The VAE proper: every pixel depends on the image's latent alone. It gives likelihoods and samples."""

    n_draws = 16

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config)
        self.seer = self._seer()
        self.proposal = _latent_head(config.hidden, config.n_latent)
        self.painter = self._painter(config.n_latent, sees=False)

    def loss(self, values: Tensor, observed: Tensor, n_draws: int, *backbone: Any) -> Tensor:
        kept = observed & shown(observed, self.config.shape)
        mean, log_scale = self._propose(values, kept)
        mean, log_scale = mean.unsqueeze(1), log_scale.unsqueeze(1)
        z = mean + torch.exp(log_scale) * torch.randn(1, n_draws, *mean.shape[2:], dtype=mean.dtype, device=mean.device)
        log_px = self.likelihoods.log_prob(self.decode(z), values.unsqueeze(1))
        log_qz = objective.log_normal(z, mean.detach(), log_scale.detach())
        log_w = objective.log_weights(log_px, kept, objective.log_normal(z), log_qz)
        return objective.iwae_loss(log_w, z)

    def draws(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._propose(values, observed)
        z = (mean + torch.exp(log_scale) * noise.unsqueeze(1)).unsqueeze(0)  # (1, K, B, L)
        params = self.decode(z)
        log_px = self.likelihoods.log_prob(params, values.unsqueeze(1))
        log_w = objective.log_weights(
            log_px, observed, objective.log_normal(z), objective.log_normal(z, mean, log_scale)
        )
        return params, log_w

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        return self._propose(values, observed)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Parameters (1, K, B, P) of every pixel given latents (1, K, B, L)."""
        with lowered(self, z):
            painted = self.painter(z.flatten(0, 2))
        return self._as_params(painted).unflatten(0, z.shape[:3])

    def _propose(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of ``q(z | x_O)``, (1, B, L)."""
        picture = self._picture(values, observed)
        with lowered(self, picture):
            _, h = self.seer(picture)
        return _split_latent(self.proposal(h.to(values.dtype)))


class ConditionalImageVAE(ImageVAE):
    """The masked ELBO split at a random set of kept pixels: the decoder also sees the maps of what is kept.

    The latent carries what the hidden pixels share beyond the kept ones: which of several ways an image goes on.
    """

    n_draws = 8

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config)
        channels = config.shape[2]
        n_out = channels * self.likelihoods.family.n_params
        n_seen = (2 + config.smooth) * channels
        self.seer = self._seer(n_seen)
        self.recognition = self._seer(share=0.5, depth=1)
        self.prior = _latent_head(config.hidden, config.n_latent)
        self.posterior = _latent_head(2 * config.hidden, config.n_latent)
        self.painter = self._painter(config.hidden + config.n_latent, sees=True)
        self.fine = nn.Conv2d(n_seen, n_out, 3, padding=1)  # what the nearest pixels say directly
        if config.smooth:
            self._start_smooth()

    def loss(self, values: Tensor, observed: Tensor, n_draws: int, *backbone: Any) -> Tensor:
        kept = observed & shown(observed, self.config.shape)
        picture, whole = self._smoothed(values, kept), self._picture(values, observed)
        with lowered(self, picture):
            maps, h = self.seer(picture)
            _, seen = self.recognition(whole)
        mean_p, log_scale_p = _split_latent(self.prior(h.to(values.dtype)))
        mean_q, log_scale_q = _split_latent(self.posterior(torch.cat([h, seen], -1).to(values.dtype)))
        z = mean_q + torch.exp(log_scale_q) * torch.randn_like(mean_q)
        log_px = self.likelihoods.taught(self._paint(picture, maps, h, z.squeeze(0)), values)
        kl = objective.kl_normal(mean_q, log_scale_q, mean_p, log_scale_p)
        return -objective.conditional_bound(log_px, observed & ~kept, kl)

    def draws(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        picture = self._smoothed(values, observed)
        maps, h = self.seer(picture)
        mean, log_scale = _split_latent(self.prior(h))
        params = [self._paint(picture, maps, h, (mean + torch.exp(log_scale) * e).squeeze(0)) for e in noise]
        stacked = torch.stack(params).unsqueeze(0)
        return stacked, torch.zeros_like(stacked[..., 0])

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        return _split_latent(self.prior(self.seer(self._smoothed(values, observed))[1]))[0]

    def _smoothed(self, values: Tensor, observed: Tensor) -> Tensor:
        """What a network is shown, and the smoothest image through the kept pixels if it is of use: (B, 3 C, H, W)."""
        picture = self._picture(values, observed)
        if not self.config.smooth:
            return picture
        smooth = smoothest(values.squeeze(0), observed.squeeze(0), self.config.shape)
        return torch.cat([picture, smooth - self.likelihoods.family.middle], 1)

    @torch.no_grad()
    def _start_smooth(self) -> None:
        """At the start a hidden pixel is expected to be what the smoothest image has there."""
        family, channels = self.likelihoods.family, self.config.shape[2]
        self.fine.weight.mul_(0.1)
        for c in range(channels):
            means = slice(c * family.n_params + family.means.start, c * family.n_params + family.means.stop)
            self.fine.weight[means, 2 * channels + c, 1, 1] += family.gain

    def _paint(self, picture: Tensor, maps: list[Tensor], h: Tensor, z: Tensor) -> Tensor:
        with lowered(self, picture):
            painted = self.painter(torch.cat([h, z.to(h.dtype)], -1), maps) + self.fine(picture)
        return self._as_params(painted)


def _latent_head(n_in: int, n_latent: int) -> nn.Linear:
    """A layer that starts as the standard normal distribution."""
    head = nn.Linear(n_in, 2 * n_latent)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _split_latent(said: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-scale (1, B, L)."""
    mean, log_scale = said.unsqueeze(0).chunk(2, -1)
    return mean, log_scale.clamp(*_SCALES)


def shown(observed: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pixels to keep in a step of the training, (1, B, D): holes are scattered in half of the images, else a rectangle.

    Scattered pixels go at the image's own rate U(0, 1); a rectangle has sides of a fifth to four fifths of the image's.
    A pixel goes with all its channels.
    """
    height, width, channels = shape
    n, device = observed.shape[1], observed.device
    uniform = torch.rand(n, 6, device=device)
    scattered = torch.rand(n, height, width, device=device) >= uniform[:, :1, None]
    inside = _interval(uniform[:, 1], uniform[:, 2], height).unsqueeze(2) & _interval(
        uniform[:, 3], uniform[:, 4], width
    ).unsqueeze(1)
    kept = torch.where(uniform[:, 5, None, None] < 0.5, scattered, ~inside)
    return kept.unsqueeze(-1).expand(-1, -1, -1, channels).flatten(1).unsqueeze(0)


def _interval(length: Tensor, place: Tensor, size: int) -> Tensor:
    """Positions (n, size) inside of an interval of a fifth to four fifths of them."""
    length = size * (0.2 + 0.6 * length)
    start = place * (size - length)
    position = torch.arange(size, device=length.device) + 0.5
    return (position >= start.unsqueeze(1)) & (position < (start + length).unsqueeze(1))
