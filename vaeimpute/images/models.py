"""The joint and the conditional model of images: masked VAEs whose networks are convolutions, whose columns are pixels.

Values and masks come as columns (M, B, D) with D = H W C in this order, as a table's do; M is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from vaeimpute.images.inpainting import inpaint
from vaeimpute.images.masking import random_mask
from vaeimpute.images.networks import ConvDecoder, ConvEncoder, autocast_bf16, convolution, dense
from vaeimpute.likelihoods.pixels import Pixels
from vaeimpute.vae import objective
from vaeimpute.vae.base import VAE, Batch

_LOG_SCALES = (-6.0, 3.0)  # bounds of the log-scale of a latent


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, in plain values (JSON in and out)."""

    shape: tuple[int, int, int]  # height, width, channels
    kind: str  # of the pixels
    max_level: int
    widths: tuple[int, ...]
    depth: int
    hidden: int
    n_latent: int
    dropout: float
    inpaints: bool  # whether the conditional model starts at the inpainted image


class ImageVAE(VAE):
    """A masked VAE over the pixels of images.

    Parameters
    ----------
    sizes : Sizes
    init : Generator, optional
        Of the networks' first weights; without one they are empty.
    """

    n_members = 1
    likelihoods: Pixels

    def __init__(self, sizes: Sizes, init: Generator | None = None) -> None:
        super().__init__()
        self.sizes, self.n_latent = sizes, sizes.n_latent
        height, width, channels = sizes.shape
        self.likelihoods = Pixels(sizes.kind, height * width * channels, sizes.max_level)

    @property
    def weights(self) -> Tensor:
        return next(self.parameters())

    def config(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        sizes = dict(config["sizes"])
        return cls(Sizes(**sizes | {"shape": tuple(sizes["shape"]), "widths": tuple(sizes["widths"])}))

    def _conv_encoder(
        self, init: Generator | None, n_in: int | None = None, share: float = 1.0, depth: int | None = None
    ) -> ConvEncoder:
        """A network that sees pixels and which of them are observed, or `n_in` channels."""
        sizes, (height, width, channels) = self.sizes, self.sizes.shape
        widths = [max(8, int(share * w)) for w in sizes.widths]
        depth = sizes.depth if depth is None else depth
        return ConvEncoder(height, width, n_in or 2 * channels, widths, depth, sizes.hidden, sizes.dropout, init)

    def _conv_decoder(self, init: Generator | None, n_in: int, *, skip_connections: bool) -> ConvDecoder:
        sizes, (height, width, channels) = self.sizes, self.sizes.shape
        n_out = channels * self.likelihoods.family.n_params
        options: dict[str, Any] = {"init": init, "skip_connections": skip_connections}
        return ConvDecoder(height, width, n_out, n_in, sizes.widths, sizes.depth, sizes.dropout, **options)

    def _input(self, values: Tensor, observed: Tensor) -> Tensor:
        """Input of a network: (1, B, D) to (B, 2 C, H, W), hidden pixels zero, and which are observed."""
        o = observed.to(values.dtype)
        both = torch.stack([torch.where(observed, values, 0), o], -1).squeeze(0)
        return both.unflatten(1, self.sizes.shape).flatten(3).permute(0, 3, 1, 2)

    def _as_params(self, output: Tensor) -> Tensor:
        """(B, C n, H, W) to the parameters of pixels in the order of the columns, (B, P)."""
        return output.to(self.weights.dtype).unflatten(1, (self.sizes.shape[2], -1)).permute(0, 3, 4, 1, 2).flatten(1)


class JointImageVAE(ImageVAE):
    """The VAE proper: every pixel depends on the image's latent alone. It gives likelihoods and samples.

    Parameters
    ----------
    sizes : Sizes
    init : Generator, optional
        Of the networks' first weights.
    """

    n_draws = 16

    def __init__(self, sizes: Sizes, init: Generator | None = None) -> None:
        super().__init__(sizes, init)
        self.encoder = self._conv_encoder(init)
        self.proposal = _latent_head(sizes.hidden, sizes.n_latent)
        self.decoder = self._conv_decoder(init, sizes.n_latent, skip_connections=False)

    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        values, visible = batch.values, random_mask(batch.observed, self.sizes.shape, generator)
        mean, log_scale = (part.unsqueeze(1) for part in self._propose(values, visible, generator))
        noise = torch.empty(1, n_draws, *mean.shape[2:], dtype=mean.dtype, device=mean.device)
        z = mean + torch.exp(log_scale) * noise.normal_(generator=generator)
        log_px = self.likelihoods.log_prob(self.decode(z, generator), values.unsqueeze(1))
        log_qz = objective.log_normal(z, mean.detach(), log_scale.detach())
        log_w = objective.log_weights(log_px, visible, objective.log_normal(z), log_qz)
        return objective.iwae_loss(log_w, z)

    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._propose(values, observed)
        z = (mean + torch.exp(log_scale) * noise.unsqueeze(1)).unsqueeze(0)  # (1, K, B, L)
        return self.weighted(values, observed, z, objective.log_normal(z, mean, log_scale))

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        return self._propose(values, observed)[0]

    def decode(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        with autocast_bf16(self, z):
            output = self.decoder(z.flatten(0, 2), generator=generator)
        return self._as_params(output).unflatten(0, z.shape[:3])

    def _propose(self, values: Tensor, observed: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-scale of ``q(z | x_O)``, (1, B, L)."""
        x = self._input(values, observed)
        with autocast_bf16(self, x):
            _, h = self.encoder(x, generator)
        return _split_latent(self.proposal(h.to(values.dtype)))


class ConditionalImageVAE(ImageVAE):
    """The masked ELBO split at a random set of visible pixels: the decoder also sees the maps of what is visible.

    The latent carries what the hidden pixels share beyond the visible ones: which of several ways an image goes on.

    Parameters
    ----------
    sizes : Sizes
    init : Generator, optional
        Of the networks' first weights.
    """

    n_draws = 8

    def __init__(self, sizes: Sizes, init: Generator | None = None) -> None:
        super().__init__(sizes, init)
        channels = sizes.shape[2]
        n_out = channels * self.likelihoods.family.n_params
        n_in = (2 + sizes.inpaints) * channels
        self.encoder = self._conv_encoder(init, n_in)
        self.recognition = self._conv_encoder(init, share=0.5, depth=1)
        self.prior = _latent_head(sizes.hidden, sizes.n_latent)
        self.posterior = _latent_head(2 * sizes.hidden, sizes.n_latent)
        self.decoder = self._conv_decoder(init, sizes.hidden + sizes.n_latent, skip_connections=True)
        self.nearest = convolution(n_in, n_out, 3, init)  # what the nearest pixels say directly
        if sizes.inpaints:
            self._start_inpainted()

    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        values, observed = batch.values, batch.observed
        visible = random_mask(observed, self.sizes.shape, generator)
        x, whole = self._inpainted_input(values, visible), self._input(values, observed)
        with autocast_bf16(self, x):
            maps, h = self.encoder(x, generator)
            _, recognised = self.recognition(whole, generator)
        mean_p, log_scale_p = _split_latent(self.prior(h.to(values.dtype)))
        mean_q, log_scale_q = _split_latent(self.posterior(torch.cat([h, recognised], -1).to(values.dtype)))
        z = mean_q + torch.exp(log_scale_q) * torch.empty_like(mean_q).normal_(generator=generator)
        log_px = self.likelihoods.training_log_prob(self._decode(x, maps, h, z.squeeze(0), generator), values)
        kl = objective.kl_normal(mean_q, log_scale_q, mean_p, log_scale_p)
        return -objective.conditional_bound(log_px, observed & ~visible, kl)

    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        x = self._inpainted_input(values, observed)
        maps, h = self.encoder(x)
        mean, log_scale = _split_latent(self.prior(h))
        params = [self._decode(x, maps, h, (mean + torch.exp(log_scale) * e).squeeze(0)) for e in noise]
        stacked = torch.stack(params).unsqueeze(0)
        return stacked, torch.zeros_like(stacked[..., 0])

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        return _split_latent(self.prior(self.encoder(self._inpainted_input(values, observed))[1]))[0]

    def _inpainted_input(self, values: Tensor, observed: Tensor) -> Tensor:
        """Input of a network, with the inpainted image beside it if that is of use: (B, 3 C, H, W)."""
        x = self._input(values, observed)
        if not self.sizes.inpaints:
            return x
        inpainted = inpaint(values.squeeze(0), observed.squeeze(0), self.sizes.shape)
        return torch.cat([x, inpainted - self.likelihoods.family.middle], 1)

    @torch.no_grad()
    def _start_inpainted(self) -> None:
        """At the start a hidden pixel is expected to be what the inpainted image has there."""
        family, channels = self.likelihoods.family, self.sizes.shape[2]
        self.nearest.weight.mul_(0.1)
        for c in range(channels):
            means = slice(c * family.n_params + family.means.start, c * family.n_params + family.means.stop)
            self.nearest.weight[means, 2 * channels + c, 1, 1] += family.gain

    def _decode(
        self, x: Tensor, maps: list[Tensor], h: Tensor, z: Tensor, generator: Generator | None = None
    ) -> Tensor:
        with autocast_bf16(self, x):
            output = self.decoder(torch.cat([h, z.to(h.dtype)], -1), maps, generator) + self.nearest(x)
        return self._as_params(output)


def _latent_head(n_in: int, n_latent: int) -> nn.Linear:
    """A layer that starts as the standard normal distribution."""
    head = dense(n_in, 2 * n_latent, init=None)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _split_latent(head: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-scale (1, B, L)."""
    mean, log_scale = head.unsqueeze(0).chunk(2, -1)
    return mean, log_scale.clamp(*_LOG_SCALES)
