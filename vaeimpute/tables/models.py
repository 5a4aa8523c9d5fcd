"""The masked VAE in its two readings: the only join of linear backbone, networks and likelihoods.

Both readings start as the exact linear VAE and hold networks that learn what is not linear (last layers are zero at
the start).

Shape letters: M members, K draws, B rows, D columns, F features, L latent, P parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from vaeimpute.gaussian.factor_analysis import Conditional, Linear, conditional, posterior
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.distributions import normal_log_density
from vaeimpute.likelihoods.families import CellSpec
from vaeimpute.tables.smoother import HEADS, Neighbours, Votes
from vaeimpute.vae import objective
from vaeimpute.vae.base import Reading, Stage
from vaeimpute.vae.layers import ResidualMLP, StackedLinear

_BANK_CHUNK = 512  # rows whose holes are filled at once: they take rank * features numbers each


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model, in plain numbers (JSON in and out)."""

    n_members: int
    rank: int
    width: int
    depth: int
    dropout: float
    log_scale_floor: float
    n_bins: int = 16
    n_bank: int = 0


class MaskedVAE(Reading):
    """A stack of M masked VAEs over the columns of one table.

    Parameters
    ----------
    config : ModelConfig
    specs : sequence of CellSpec
        The likelihood of each column.
    """

    W: Tensor  # (M, F, L)
    b: Tensor  # (M, F)
    psi: Tensor  # (M, F)
    likelihoods: ColumnLikelihoods

    def __init__(self, config: ModelConfig, specs: Sequence[CellSpec]) -> None:
        super().__init__()
        self.config, self.n_members = config, config.n_members
        self.likelihoods = ColumnLikelihoods(specs, config.log_scale_floor)
        M, F = config.n_members, self.likelihoods.n_features
        self.register_buffer("W", torch.zeros(M, F, config.rank))
        self.register_buffer("b", torch.zeros(M, F))
        self.register_buffer("psi", torch.ones(M, F))

    @property
    def weights(self) -> Tensor:
        return self.W

    @property
    def linear(self) -> Linear:
        """The frozen linear backbone of all members."""
        return Linear(self.W, self.b, self.psi)

    @torch.no_grad()
    def start(self, linear: Linear, values: Tensor, observed: Tensor) -> None:
        """Take over the linear backbone (M, ...) and what else is read off the training table."""
        for name, value in zip(("W", "b", "psi"), linear, strict=True):
            getattr(self, name).copy_(value)

    @abstractmethod
    def loss(
        self, values: Tensor, observed: Tensor, n_draws: int, linear: Linear | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Negative bound of each row, (M, B, D) to (M, B), with freshly hidden cells.

        `linear` replaces the backbone for this batch (a fit that has not seen its rows); `rows` (M, B) are the rows'
        numbers in the training table.
        """

    def header(self) -> dict:
        return {"config": asdict(self.config), "specs": [asdict(spec) for spec in self.likelihoods.specs]}

    @classmethod
    def from_header(cls, header: Mapping) -> Self:
        specs = [CellSpec(s["family"], tuple(s["points"]), tuple(s["edges"])) for s in header["specs"]]
        return cls(ModelConfig(**header["config"]), specs)

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


class JointVAE(MaskedVAE):
    """The VAE proper: every cell depends on the row's latent alone.

    Posterior ``z = m + L'^-1 u``, ``u = exp(s) eps + delta`` around the exact linear posterior ``N(m, (L L')^-1)``;
    decoder ``W z + b`` plus a residual network. It gives likelihoods, scores and samples.
    """

    n_draws = 64

    def __init__(self, config: ModelConfig, specs: Sequence[CellSpec]) -> None:
        super().__init__(config, specs)
        M, F, rank = config.n_members, self.likelihoods.n_features, config.rank
        self.n_latent = rank
        sizes = (M, config.width)
        self.encoder = ResidualMLP(M, 3 * F + rank, config.width, config.depth, config.dropout, norm=True)
        self.encoder_head = StackedLinear(*sizes, 2 * rank, zero=True)
        self.decoder = ResidualMLP(M, rank, config.width, config.depth, config.dropout, norm=False)
        self.decoder_head = StackedLinear(*sizes, self.likelihoods.n_params, zero=True)
        self.decoder_W = nn.Parameter(torch.zeros(M, F, rank))
        self.decoder_b = nn.Parameter(torch.zeros(M, F))
        self.log_scale = nn.Parameter(torch.zeros(M, F))

    @torch.no_grad()
    def start(self, linear: Linear, values: Tensor, observed: Tensor) -> None:
        super().start(linear, values, observed)
        self.decoder_W.copy_(linear.W)
        self.decoder_b.copy_(linear.b)
        self.log_scale.copy_(0.5 * linear.psi.log())

    def loss(
        self, values: Tensor, observed: Tensor, n_draws: int, linear: Linear | None = None, rows: Tensor | None = None
    ) -> Tensor:
        kept = _remask_half(observed)
        M, B, _ = values.shape
        noise = torch.randn(M, n_draws, B, self.config.rank, dtype=values.dtype, device=values.device)
        proposal = self._propose(values, kept)
        z = proposal.latent(noise)
        log_px = self.likelihoods.log_prob(self.decode(z), values.unsqueeze(1))
        log_w = objective.log_weights(log_px, kept, objective.log_normal(z), proposal.log_density(z))
        return objective.iwae_loss(log_w, z)

    def draws(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        proposal = self._propose(values, observed)
        z = proposal.latent(noise.unsqueeze(1))
        params = self.decode(z)
        log_px = self.likelihoods.log_prob(params, values.unsqueeze(1))
        log_w = objective.log_weights(log_px, observed, objective.log_normal(z), proposal.log_density(z))
        return params, log_w

    def encode(self, values: Tensor, observed: Tensor) -> Tensor:
        """Mean of the proposal ``q(z | x_O)``, (M, B, L)."""
        noise = torch.zeros(1, 1, self.config.rank, dtype=values.dtype, device=values.device)
        return self._propose(values, observed).latent(noise).squeeze(1)

    def decode(self, z: Tensor) -> Tensor:
        """Parameters (M, K, B, P) of every cell given latents (M, K, B, L)."""
        flat = z.flatten(1, 2)
        y = torch.baddbmm(self.decoder_b.unsqueeze(1), flat, self.decoder_W.transpose(-1, -2))
        params = self.likelihoods.base(y, self.log_scale.unsqueeze(1)) + self.decoder_head(self.decoder(flat))
        return params.unflatten(1, z.shape[1:3])

    def _propose(self, values: Tensor, observed: Tensor) -> _Proposal:
        x, o = self._inputs(values, observed)
        with torch.no_grad():
            m, chol = posterior(x, o, self.linear)
            filled = torch.where(o, x, m @ self.W.transpose(-1, -2) + self.b.unsqueeze(-2))
            eye = torch.eye(self.config.rank, dtype=x.dtype, device=x.device).expand_as(chol)
            inverse = torch.linalg.solve_triangular(chol, eye, upper=False)
            inputs = torch.cat([torch.where(o, x, 0).expand_as(filled), filled, o.to(x.dtype).expand_as(filled), m], -1)
        shift, log_scale = self.encoder_head(self.encoder(inputs)).unsqueeze(1).chunk(2, -1)
        return _Proposal(m.unsqueeze(1), chol, inverse, shift, log_scale.clamp(-5, 2))  # beyond, weights overflow


class ConditionalVAE(MaskedVAE):
    """The masked ELBO split at a random set of kept cells: the decoder also sees the features of what is kept.

    Steps and thresholds need not pass through the latent, which carries only what the hidden cells share. The base of
    every cell is the linear VAE's conditional mean and scale given what is kept.

    Training rows are evidence too: their votes (`Neighbours`) are mixed into that base by gates. This smoother is
    trained first and by itself; then it stands still, and the networks learn what it leaves.
    """

    n_latent = 8  # what hidden cells share beyond the kept ones
    n_draws = 8
    hide_all = 0.1  # share of rows that keep nothing: on these the bound is the masked ELBO
    max_hidden = 0.7
    voters = 2048  # rows of the bank that are asked in a step of the training

    edges: Tensor  # (numbers, bins + 1) quantiles of each numeric feature

    def __init__(self, config: ModelConfig, specs: Sequence[CellSpec]) -> None:
        super().__init__(config, specs)
        M, F, width = config.n_members, self.likelihoods.n_features, config.width
        numeric = self.likelihoods.numeric_features
        self.register_buffer("edges", torch.zeros(len(numeric), config.n_bins + 1))
        self.neighbours = Neighbours(config.n_bank, F)
        n_in = (4 + 2 * len(HEADS)) * F + len(numeric) * config.n_bins
        self.trunk = ResidualMLP(M, n_in, width, config.depth, config.dropout, norm=True)
        self.prior_head = StackedLinear(M, width, 2 * self.n_latent, zero=True)
        self.gate_head = StackedLinear(M, width, len(HEADS) * F, zero=True)
        self.recognition = ResidualMLP(M, 2 * F, width // 4, 1, 0.0, norm=True)
        self.posterior_head = StackedLinear(M, width // 4, 2 * self.n_latent, zero=True)
        self.decoder = ResidualMLP(M, self.n_latent + width, width, 1, config.dropout, norm=True)
        self.decoder_head = StackedLinear(M, width, self.likelihoods.n_params, zero=True)

    @torch.no_grad()
    def start(self, linear: Linear, values: Tensor, observed: Tensor) -> None:
        super().start(linear, values, observed)
        x, o = self._inputs(values, observed)
        grid = torch.linspace(0, 1, self.config.n_bins + 1, dtype=x.dtype, device=x.device)
        for row, feature in enumerate(self.likelihoods.numeric_features.tolist()):
            cells = x[o[:, feature], feature]
            step = max(1, len(cells) // 100_000)
            if len(cells):
                self.edges[row] = torch.quantile(cells[::step], grid)
        rows = torch.randperm(len(x), device=x.device)[: self.config.n_bank]
        first = Linear(self.W[0], self.b[0], self.psi[0])
        parts = [conditional(x[part], o[part], first) for part in rows.split(_BANK_CHUNK)]
        given = Conditional(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self.neighbours.fill(x[rows], o[rows], given, rows)

    @torch.no_grad()
    def remember(self, observed: Tensor) -> None:
        known = observed[:, self.neighbours.numbers]
        self.neighbours.known = known.index_select(-1, self.likelihoods.feature_columns)

    def stages(self) -> list[Stage]:
        smoother = list(self.neighbours.parameters())
        networks = [p for name, p in self.named_parameters() if not name.startswith("neighbours.")]
        return [Stage(smoother, self._smoother_loss), Stage(networks, self.loss)]

    def _smoother_loss(
        self, values: Tensor, observed: Tensor, n_draws: int, linear: Linear | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """What the smoother alone says of freshly hidden cells, numbers and classes as features, (M, B).

        Two Gaussian likelihoods: one whose scale is a multiple of the linear model's teaches the mean, as a squared
        error that lets every feature count; one around that mean, held fixed, teaches the cell's own scale.
        """
        kept = _remask(observed, self.max_hidden, 0.0)
        x, o, given, votes = self._ask(values, kept, linear, rows, self._voters(rows is not None))
        mean, log_scale = self.neighbours.mix(given, votes)
        asked = observed.index_select(-1, self.likelihoods.feature_columns) & ~o
        typical = 0.5 * given.variance.log() + self.neighbours.log_error
        log_px = normal_log_density(x, mean, typical) + normal_log_density(x, mean.detach(), log_scale)
        return -torch.where(asked, log_px, 0).sum(-1)

    def _ask(
        self,
        values: Tensor,
        kept: Tensor,
        linear: Linear | None,
        rows: Tensor | None,
        voters: slice,
    ) -> tuple[Tensor, Tensor, Conditional, Votes]:
        """Features and which of them are kept, and what the linear VAE and the neighbours make of them."""
        x, o = self._inputs(values, kept)
        with torch.no_grad():
            given = conditional(x, o, linear or self.linear)
        return x, o, given, self.neighbours(x, o, given, linear or self.linear, rows, voters)

    def loss(
        self, values: Tensor, observed: Tensor, n_draws: int, linear: Linear | None = None, rows: Tensor | None = None
    ) -> Tensor:
        kept = _remask(observed, self.max_hidden, self.hide_all)
        base, h, mean_p, log_scale_p = self._read(values, kept, linear, rows)
        x, o = self._inputs(values, observed)
        seen = self.recognition(torch.cat([torch.where(o, x, 0), o.to(x.dtype)], -1))
        mean_q, log_scale_q = self.posterior_head(seen).chunk(2, -1)
        z = mean_q + torch.exp(log_scale_q) * torch.randn_like(mean_q)
        params = base + self.decoder_head(self.decoder(torch.cat([z, h], -1)))
        log_px = self.likelihoods.log_prob(params, values)
        kl = objective.kl_normal(mean_q, log_scale_q, mean_p, log_scale_p)
        return -objective.conditional_bound(log_px, observed & ~kept, kl)

    def cells_per_row(self, n_draws: int) -> int:
        return super().cells_per_row(n_draws) + len(HEADS) * self.config.n_bank

    def draws(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        base, h, mean, log_scale = self._read(values, observed)
        z = mean.unsqueeze(1) + torch.exp(log_scale).unsqueeze(1) * noise.unsqueeze(1)  # (M, K, B, L)
        inputs = torch.cat([z, h.unsqueeze(1).expand(-1, z.shape[1], -1, -1)], -1)
        correction = self.decoder_head(self.decoder(inputs.flatten(1, 2))).unflatten(1, z.shape[1:3])
        params = base.unsqueeze(1) + correction
        return params, torch.zeros_like(params[..., 0])

    def _voters(self, training: bool) -> slice:
        """All of the bank; in a step of the training, which learns how far to trust it, a random part."""
        if training and self.config.n_bank > self.voters:
            start = int(torch.randint(self.config.n_bank - self.voters + 1, (1,)))
            return slice(start, start + self.voters)
        return slice(None)

    def _read(self, values: Tensor, kept: Tensor, linear: Linear | None = None, rows: Tensor | None = None) -> tuple:
        """Base parameters, trunk features, mean and log scale of the latent, given the kept cells."""
        with torch.no_grad():
            x, o, given, votes = self._ask(values, kept, linear, rows, self._voters(rows is not None))
            mean, log_scale = self.neighbours.mix(given, votes)
            filled = torch.where(o, x, mean)
            numbers = filled.index_select(-1, self.likelihoods.numeric_features).unsqueeze(-1)
            low, high = self.edges[:, :-1], self.edges[:, 1:]
            bins = ((numbers - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).flatten(-2)
            heads = torch.cat([torch.where(o.unsqueeze(1), x.unsqueeze(1), votes.mean), votes.share], 1)
            parts = [torch.where(o, x, 0), filled, o.to(x.dtype), log_scale, heads.transpose(1, 2).flatten(-2), bins]
            inputs = torch.cat([part.expand(self.config.n_members, -1, -1) for part in parts], -1)
        h = self.trunk(inputs)
        more = self.gate_head(h).unflatten(-1, (len(HEADS), -1)).transpose(1, 2)
        base = self.likelihoods.base(*self.neighbours.mix(given, votes, more))
        latent_mean, log_scale = self.prior_head(h).chunk(2, -1)
        return base, h, latent_mean, log_scale


def _remask_half(observed: Tensor) -> Tensor:
    """Hide observed cells at a rate ``U(0, 0.6)`` in every second row of the batch."""
    rate = 0.6 * torch.rand(*observed.shape[:-1], 1, device=observed.device)
    rate[..., ::2, :] = 0
    return observed & (torch.rand(observed.shape, device=observed.device) >= rate)


def _remask(observed: Tensor, max_hidden: float, hide_all: float) -> Tensor:
    """Hide each observed cell at the row's own rate ``U(0, max_hidden)``, and all of them in some rows."""
    rate = max_hidden * torch.rand(*observed.shape[:-1], 1, device=observed.device)
    rate = torch.where(torch.rand_like(rate) < hide_all, 1.0, rate)
    return observed & (torch.rand(observed.shape, device=observed.device) >= rate)
