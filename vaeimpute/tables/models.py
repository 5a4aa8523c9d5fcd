"""The joint and the conditional model of a table: the only join of linear backbone, networks and likelihoods.

Both start as the exact linear VAE and hold networks that learn what is not linear (last layers are zero at the start).

Shape letters: M members, K draws, B rows, D columns, F features, L latent, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import ConditionalGaussian, FactorAnalysis, conditional, posterior
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.distributions import normal_log_density
from vaeimpute.tables.smoother import HEADS, KernelEstimates, KernelSmoother
from vaeimpute.vae import objective
from vaeimpute.vae.base import VAE, Batch, Stage
from vaeimpute.vae.layers import ResidualMLP, StackedLinear
from vaeimpute.vae.masking import random_mask, random_mask_of_half


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, in plain numbers (JSON in and out)."""

    n_members: int
    rank: int
    width: int
    depth: int
    dropout: float
    log_scale_floor: float
    n_bins: int = 16
    n_reference: int = 0


class TableVAE(VAE):
    """A stack of M masked VAEs over the columns of one table.

    Parameters
    ----------
    sizes : Sizes
    specs : sequence of CellSpec
        The likelihood of each column.
    init : Generator, optional
        Of the networks' first weights; without one they are zero.
    """

    W: Tensor  # (M, F, L)
    b: Tensor  # (M, F)
    psi: Tensor  # (M, F)
    likelihoods: ColumnLikelihoods

    def __init__(self, sizes: Sizes, specs: Sequence[CellSpec], init: Generator | None = None) -> None:
        super().__init__()
        self.sizes, self.n_members = sizes, sizes.n_members
        self.likelihoods = ColumnLikelihoods(specs, sizes.log_scale_floor)
        M, F = sizes.n_members, self.likelihoods.n_features
        self.register_buffer("W", torch.zeros(M, F, sizes.rank))
        self.register_buffer("b", torch.zeros(M, F))
        self.register_buffer("psi", torch.ones(M, F))

    @property
    def weights(self) -> Tensor:
        return self.W

    @property
    def backbone(self) -> FactorAnalysis:
        """The frozen linear VAE of all members."""
        return FactorAnalysis(self.W, self.b, self.psi)

    @torch.no_grad()
    def start(self, backbone: FactorAnalysis, values: Tensor, observed: Tensor, generator: Generator) -> None:
        """Take over the linear backbone (M, ...) and what else is read off the training table (n, D)."""
        for name, value in zip(("W", "b", "psi"), backbone, strict=True):
            getattr(self, name).copy_(value)

    def config(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes), "specs": [asdict(spec) for spec in self.likelihoods.specs]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        return cls(Sizes(**config["sizes"]), [CellSpec.from_json(spec) for spec in config["specs"]])

    def _inputs(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Features and which of them are observed, (M, B, F)."""
        return self.likelihoods.features(values), observed.index_select(-1, self.likelihoods.feature_columns)


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


class JointVAE(TableVAE):
    """The VAE proper: every cell depends on the row's latent alone.

    Posterior ``z = m + L'^-1 u``, ``u = exp(s) eps + delta`` around the exact linear posterior ``N(m, (L L')^-1)``;
    decoder ``W z + b`` plus a residual network. It gives likelihoods, scores and samples.

    Parameters
    ----------
    sizes, specs, init
        As of `TableVAE`.
    """

    n_draws = 64
    max_hidden = 0.6  # of the observed cells of a row, in every second one of a batch

    def __init__(self, sizes: Sizes, specs: Sequence[CellSpec], init: Generator | None = None) -> None:
        super().__init__(sizes, specs, init)
        M, F, rank, width = sizes.n_members, self.likelihoods.n_features, sizes.rank, sizes.width
        self.n_latent = rank
        self.encoder = ResidualMLP(M, 3 * F + rank, width, sizes.depth, sizes.dropout, norm=True, init=init)
        self.encoder_head = StackedLinear(M, width, 2 * rank)
        self.decoder = ResidualMLP(M, rank, width, sizes.depth, sizes.dropout, norm=False, init=init)
        self.decoder_head = StackedLinear(M, width, self.likelihoods.n_params)
        self.decoder_W = nn.Parameter(torch.zeros(M, F, rank))
        self.decoder_b = nn.Parameter(torch.zeros(M, F))
        self.log_scale = nn.Parameter(torch.zeros(M, F))

    @torch.no_grad()
    def start(self, backbone: FactorAnalysis, values: Tensor, observed: Tensor, generator: Generator) -> None:
        super().start(backbone, values, observed, generator)
        self.decoder_W.copy_(backbone.W)
        self.decoder_b.copy_(backbone.b)
        self.log_scale.copy_(0.5 * backbone.psi.log())

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
        params = params + self.decoder_head(self.decoder(flat, generator))
        return params.unflatten(1, z.shape[1:3])

    def _propose(self, values: Tensor, observed: Tensor, generator: Generator | None = None) -> _Proposal:
        x, o = self._inputs(values, observed)
        with torch.no_grad():
            m, chol = posterior(x, o, self.backbone)
            filled = torch.where(o, x, m @ self.W.transpose(-1, -2) + self.b.unsqueeze(-2))
            eye = torch.eye(self.n_latent, dtype=x.dtype, device=x.device).expand_as(chol)
            inverse = torch.linalg.solve_triangular(chol, eye, upper=False)
            inputs = torch.cat([torch.where(o, x, 0).expand_as(filled), filled, o.to(x.dtype).expand_as(filled), m], -1)
        shift, log_scale = self.encoder_head(self.encoder(inputs, generator)).unsqueeze(1).chunk(2, -1)
        return _Proposal(m.unsqueeze(1), chol, inverse, shift, log_scale.clamp(-5, 2))  # beyond, weights overflow


class ConditionalVAE(TableVAE):
    """The masked ELBO split at a random set of visible cells: the decoder also sees the features of what is visible.

    Steps and thresholds need not pass through the latent, which carries only what the hidden cells share. The base of
    every cell is the linear VAE's conditional mean and scale given what is visible.

    Training rows are evidence too: their kernel estimates (`KernelSmoother`) are mixed into that base by gates. This
    smoother is trained first and by itself; then it stands still, and the networks learn what it leaves.

    Parameters
    ----------
    sizes, specs, init
        As of `TableVAE`.
    """

    n_latent = 8  # what hidden cells share beyond the visible ones
    n_draws = 8
    hide_all = 0.1  # share of rows that keep nothing: on these the bound is the masked ELBO
    max_hidden = 0.7
    n_reference_in_training = 2048  # reference rows that are used in a step of the training

    edges: Tensor  # (numbers, bins + 1) quantiles of each scalar feature

    def __init__(self, sizes: Sizes, specs: Sequence[CellSpec], init: Generator | None = None) -> None:
        super().__init__(sizes, specs, init)
        M, F, width, dropout = sizes.n_members, self.likelihoods.n_features, sizes.width, sizes.dropout
        n_scalar = len(self.likelihoods.scalar_features)
        self.register_buffer("edges", torch.zeros(n_scalar, sizes.n_bins + 1))
        self.smoother = KernelSmoother(sizes.n_reference, F)
        n_in = (4 + 2 * len(HEADS)) * F + n_scalar * sizes.n_bins
        self.trunk = ResidualMLP(M, n_in, width, sizes.depth, dropout, norm=True, init=init)
        self.prior_head = StackedLinear(M, width, 2 * self.n_latent)
        self.gate_head = StackedLinear(M, width, len(HEADS) * F)
        self.recognition = ResidualMLP(M, 2 * F, width // 4, 1, 0.0, norm=True, init=init)
        self.posterior_head = StackedLinear(M, width // 4, 2 * self.n_latent)
        self.decoder = ResidualMLP(M, self.n_latent + width, width, 1, dropout, norm=True, init=init)
        self.decoder_head = StackedLinear(M, width, self.likelihoods.n_params)

    @torch.no_grad()
    def start(self, backbone: FactorAnalysis, values: Tensor, observed: Tensor, generator: Generator) -> None:
        super().start(backbone, values, observed, generator)
        x, o = self._inputs(values, observed)
        grid = torch.linspace(0, 1, self.sizes.n_bins + 1, dtype=x.dtype, device=x.device)
        for row, feature in enumerate(self.likelihoods.scalar_features.tolist()):
            cells = x[o[:, feature], feature]
            step = max(1, len(cells) // 100_000)
            if len(cells):
                self.edges[row] = torch.quantile(cells[::step], grid)
        if not self.sizes.n_reference:
            return
        rows = torch.randperm(len(x), device=x.device, generator=generator)[: self.sizes.n_reference]
        first = FactorAnalysis(self.W[0], self.b[0], self.psi[0])
        numbers = x.shape[1] + 3 * first.rank**2  # of a row
        slices = [rows[part] for part in row_slices(len(rows), numbers)]
        parts = [conditional(x[part], o[part], first) for part in slices]
        given = ConditionalGaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self.smoother.set_reference(x[rows], o[rows], given, rows)

    @torch.no_grad()
    def remember(self, visible: Callable[[Tensor], Tensor]) -> None:
        cells = visible(self.smoother.row_numbers)
        self.smoother.visible = cells.index_select(-1, self.likelihoods.feature_columns)

    def stages(self) -> list[Stage]:
        smoother = list(self.smoother.parameters())
        networks = [p for name, p in self.named_parameters() if not name.startswith("smoother.")]
        return [Stage(smoother, self._smoother_loss), Stage(networks, self.loss)]

    def _smoother_loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        """How well the smoother alone predicts freshly hidden cells, numbers and classes as features, (M, B).

        Two Gaussian likelihoods: one whose scale is a multiple of the linear model's teaches the mean, as a squared
        error that lets every feature count; one around that mean, held fixed, teaches the cell's own scale.
        """
        visible = random_mask(batch.observed, generator, max_hidden=self.max_hidden)
        x, o, given, estimates = self._estimate(batch._replace(observed=visible), self._random_reference(generator))
        mean, log_scale = self.smoother.mix(given, estimates)
        hidden = batch.observed.index_select(-1, self.likelihoods.feature_columns) & ~o
        typical = 0.5 * given.variance.log() + self.smoother.log_error
        log_px = normal_log_density(x, mean, typical) + normal_log_density(x, mean.detach(), log_scale)
        return -torch.where(hidden, log_px, 0).sum(-1)

    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        visible = random_mask(batch.observed, generator, max_hidden=self.max_hidden, hide_all=self.hide_all)
        given = batch._replace(observed=visible)
        base, h, mean_p, log_scale_p = self._condition(given, self._random_reference(generator), generator)
        x, o = self._inputs(batch.values, batch.observed)
        recognised = self.recognition(torch.cat([torch.where(o, x, 0), o.to(x.dtype)], -1))
        mean_q, log_scale_q = self.posterior_head(recognised).chunk(2, -1)
        z = mean_q + torch.exp(log_scale_q) * torch.empty_like(mean_q).normal_(generator=generator)
        params = base + self.decoder_head(self.decoder(torch.cat([z, h], -1), generator))
        log_px = self.likelihoods.log_prob(params, batch.values)
        kl = objective.kl_normal(mean_q, log_scale_q, mean_p, log_scale_p)
        return -objective.conditional_bound(log_px, batch.observed & ~visible, kl)

    def numbers_per_row(self, n_draws: int) -> int:
        return super().numbers_per_row(n_draws) + len(HEADS) * self.sizes.n_reference

    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        base, h, mean, log_scale = self._condition(Batch(values, observed))
        z = mean.unsqueeze(1) + torch.exp(log_scale).unsqueeze(1) * noise.unsqueeze(1)  # (M, K, B, L)
        inputs = torch.cat([z, h.unsqueeze(1).expand(-1, z.shape[1], -1, -1)], -1)
        correction = self.decoder_head(self.decoder(inputs.flatten(1, 2))).unflatten(1, z.shape[1:3])
        params = base.unsqueeze(1) + correction
        return params, torch.zeros_like(params[..., 0])

    def _random_reference(self, generator: Generator) -> slice:
        """Part of the reference rows for a step of the training, which learns how far to trust them; later all."""
        n, most = self.sizes.n_reference, self.n_reference_in_training
        if n <= most:
            return slice(None)
        start = int(torch.randint(n - most + 1, (1,), device=generator.device, generator=generator))
        return slice(start, start + most)

    def _estimate(
        self, batch: Batch, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor, ConditionalGaussian, KernelEstimates]:
        """Features and which of them are visible, and what the linear VAE and the smoother make of them."""
        x, o = self._inputs(batch.values, batch.observed)
        backbone = batch.backbone or self.backbone
        with torch.no_grad():
            given = conditional(x, o, backbone)
        return x, o, given, self.smoother(x, o, given, backbone, batch.rows, part)

    def _condition(
        self, batch: Batch, part: slice = slice(None), generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Base parameters, trunk features, mean and log scale of the latent, given the visible cells."""
        with torch.no_grad():
            x, o, given, estimates = self._estimate(batch, part)
            mean, log_scale = self.smoother.mix(given, estimates)
            filled = torch.where(o, x, mean)
            numbers = filled.index_select(-1, self.likelihoods.scalar_features).unsqueeze(-1)
            low, high = self.edges[:, :-1], self.edges[:, 1:]
            bins = ((numbers - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).flatten(-2)
            heads = torch.cat([torch.where(o.unsqueeze(1), x.unsqueeze(1), estimates.mean), estimates.share], 1)
            parts = [torch.where(o, x, 0), filled, o.to(x.dtype), log_scale, heads.transpose(1, 2).flatten(-2), bins]
            inputs = torch.cat([part.expand(self.n_members, -1, -1) for part in parts], -1)
        h = self.trunk(inputs, generator)
        more = self.gate_head(h).unflatten(-1, (len(HEADS), -1)).transpose(1, 2)
        base = self.likelihoods.from_gaussian(*self.smoother.mix(given, estimates, more))
        latent_mean, log_scale = self.prior_head(h).chunk(2, -1)
        return base, h, latent_mean, log_scale
