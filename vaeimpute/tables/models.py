"""The joint model of a table: the only join of linear VAE, networks and likelihoods.

It starts as the exact linear VAE; its networks learn what is not linear (last layers are zero at the start).

Shape letters: M members, K draws, B rows, D columns, F features, L latent, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, posterior
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.vae import objective
from vaeimpute.vae.base import VAE, Batch
from vaeimpute.vae.layers import ResidualMLP, StackedLinear
from vaeimpute.vae.masking import random_mask_of_half


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, in plain numbers (JSON in and out); a width of zero is the linear VAE without networks."""

    n_members: int
    rank: int
    width: int
    depth: int
    dropout: float
    log_scale_floor: float


class _Proposal(NamedTuple):
    """``q(z | x_O)``: the exact linear posterior ``N(m, (L L')^-1)``, shifted and scaled in its whitened space."""

    m: Tensor  # (M, 1, B, L)
    chol: Tensor  # (M, B, L, L)
    inverse: Tensor  # of chol
    shift: Tensor  # (M, 1, B, L)
    log_scale: Tensor  # (M, 1, B, L)

    def latent(self, noise: Tensor) -> Tensor:
        """``z = m + L'^-1 u`` with ``u = exp(s) noise + shift``, (M, K, B, L)."""
        u = torch.exp(self.log_scale) * noise + self.shift
        return self.m + (u.transpose(1, 2) @ self.inverse).transpose(1, 2)

    def log_density(self, z: Tensor) -> Tensor:
        """``log q(z)``, (M, K, B), with the network's part detached (what objective.iwae_loss asks for)."""
        u = ((z - self.m).transpose(1, 2) @ self.chol).transpose(1, 2)
        log_det = self.chol.diagonal(dim1=-2, dim2=-1).log().sum(-1).unsqueeze(1)
        return objective.log_normal(u, self.shift.detach(), self.log_scale.detach()) + log_det


class JointVAE(VAE):
    """The VAE proper, a stack of M: every cell depends on the row's latent alone.

    Posterior ``z = m + L'^-1 u``, ``u = exp(s) eps + delta`` around the exact linear posterior ``N(m, (L L')^-1)``;
    decoder ``W z + b`` plus a residual network. It gives likelihoods, scores and samples. Without networks it is the
    linear VAE itself.

    Parameters
    ----------
    sizes : Sizes
    specs : sequence of CellSpec
        The likelihood of each column.
    init : Generator, optional
        Of the networks' first weights; without one they are zero.
    """

    max_hidden = 0.6  # of the observed cells of a row, in every second one of a batch
    W: Tensor  # (M, F, L)
    b: Tensor  # (M, F)
    psi: Tensor  # (M, F)
    likelihoods: ColumnLikelihoods

    def __init__(self, sizes: Sizes, specs: Sequence[CellSpec], init: Generator | None = None) -> None:
        super().__init__()
        self.sizes, self.n_members, self.n_latent = sizes, sizes.n_members, sizes.rank
        self.n_draws = 64 if sizes.width else 8  # without networks only classes make draws differ in weight
        self.likelihoods = ColumnLikelihoods(specs, sizes.log_scale_floor)
        M, F, rank, width = sizes.n_members, self.likelihoods.n_features, sizes.rank, sizes.width
        self.register_buffer("W", torch.zeros(M, F, rank))
        self.register_buffer("b", torch.zeros(M, F))
        self.register_buffer("psi", torch.ones(M, F))
        self.decoder_W = nn.Parameter(torch.zeros(M, F, rank))
        self.decoder_b = nn.Parameter(torch.zeros(M, F))
        self.log_scale = nn.Parameter(torch.zeros(M, F))
        if width:
            self.encoder = ResidualMLP(M, 3 * F + rank, width, sizes.depth, sizes.dropout, norm=True, init=init)
            self.encoder_head = StackedLinear(M, width, 2 * rank)
            self.decoder = ResidualMLP(M, rank, width, sizes.depth, sizes.dropout, norm=False, init=init)
            self.decoder_head = StackedLinear(M, width, self.likelihoods.n_params)

    @property
    def weights(self) -> Tensor:
        return self.W

    @property
    def backbone(self) -> FactorAnalysis:
        """The frozen linear VAE of all members."""
        return FactorAnalysis(self.W, self.b, self.psi)

    @torch.no_grad()
    def start(self, backbone: FactorAnalysis) -> None:
        """Take over the linear VAE of each member, (M, ...)."""
        for name, value in zip(("W", "b", "psi"), backbone, strict=True):
            getattr(self, name).copy_(value)
        self.decoder_W.copy_(backbone.W)
        self.decoder_b.copy_(backbone.b)
        self.log_scale.copy_(0.5 * backbone.psi.log())

    def config(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes), "specs": [asdict(spec) for spec in self.likelihoods.specs]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        return cls(Sizes(**config["sizes"]), [CellSpec.from_json(spec) for spec in config["specs"]])

    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        values, visible = batch.values, random_mask_of_half(batch.observed, generator, max_hidden=self.max_hidden)
        M, B, _ = values.shape
        noise = torch.empty(M, n_draws, B, self.n_latent, dtype=values.dtype, device=values.device)
        proposal = self._propose(values, visible, generator)
        z = proposal.latent(noise.normal_(generator=generator))
        params = self.decode(z, generator)
        log_px = self.likelihoods.log_prob(params, values.unsqueeze(1))
        log_w = objective.log_weights(log_px, visible, objective.log_normal(z), proposal.log_density(z))
        return objective.iwae_loss(log_w, z)

    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        proposal = self._propose(values, observed)
        z = proposal.latent(noise.unsqueeze(1))
        return self.weighted(values, observed, z, proposal.log_density(z))

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        noise = torch.zeros(1, 1, self.n_latent, dtype=values.dtype, device=values.device)
        return self._propose(values, observed).latent(noise).squeeze(1)

    def decode(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        flat = z.flatten(1, 2)
        y = torch.baddbmm(self.decoder_b.unsqueeze(1), flat, self.decoder_W.transpose(-1, -2))
        params = self.likelihoods.from_gaussian(y, self.log_scale.unsqueeze(1))
        if self.sizes.width:
            params = params + self.decoder_head(self.decoder(flat, generator))
        return params.unflatten(1, z.shape[1:3])

    def _propose(self, values: Tensor, observed: Tensor, generator: Generator | None = None) -> _Proposal:
        x, o = self.likelihoods.features(values), observed.index_select(-1, self.likelihoods.feature_columns)
        with torch.no_grad():
            m, chol = posterior(x, o, self.backbone)
            eye = torch.eye(self.n_latent, dtype=x.dtype, device=x.device).expand_as(chol)
            inverse = torch.linalg.solve_triangular(chol, eye, upper=False)
            if not self.sizes.width:
                still = torch.zeros_like(m).unsqueeze(1)
                return _Proposal(m.unsqueeze(1), chol, inverse, still, still)
            filled = torch.where(o, x, m @ self.W.transpose(-1, -2) + self.b.unsqueeze(-2))
            inputs = torch.cat([torch.where(o, x, 0).expand_as(filled), filled, o.to(x.dtype).expand_as(filled), m], -1)
        shift, log_scale = self.encoder_head(self.encoder(inputs, generator)).unsqueeze(1).chunk(2, -1)
        return _Proposal(m.unsqueeze(1), chol, inverse, shift, log_scale.clamp(-5, 2))  # beyond, weights overflow
