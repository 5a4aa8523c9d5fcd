"""The conditional model in closed form: linear VAEs, smoothers over training rows, random features; no networks.

Shape letters: E linear VAEs, S smoothers, H heads, B rows, N reference rows, F features, L latent, P random features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, NamedTuple, Self

import torch
from torch import Generator, Tensor

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import FactorAnalysis, cell_variance, decode, posterior
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.tables.corrections import Correction, Indicators, RandomFeatures
from vaeimpute.tables.smoother import N_HEADS, Given, Layout, Prepared, Reference, estimate, mix, prepare
from vaeimpute.vae.base import VAE, Batch

SMALLEST_VARIANCE = 1e-10
_SMALLEST_SHARE = 1e-3  # of the smoothers' variance of a row without cells: neighbours that are all alike


@dataclass(frozen=True)
class ClosedFormSizes:
    """Sizes of the model, in plain numbers (JSON in and out)."""

    n_linear: int
    rank: int
    n_smoothers: int
    n_reference: int
    n_random: int
    log_scale_floor: float


class Smoothed(NamedTuple):
    """Answers of a smoother (B, F), its votes (B, H, F), and the variance of what they average (B, F)."""

    answer: Tensor
    votes: Tensor
    variance: Tensor


class _Prepared(NamedTuple):
    """What every answer needs and only depends on the model: kept from the first answer on."""

    smoothers: list[Prepared]
    key: Tensor  # (2 F,) a random projection
    codes: Tensor  # (N,) of the reference rows, sorted
    order: Tensor
    indicators: Indicators


class ClosedFormVAE(VAE):
    """The masked model whose decoder is solved, column by column, and not trained.

    The latent is that of the linear VAE, and so is its posterior. A cell's mean given the visible cells is the average
    of linear VAEs of several ranks and of kernel smoothers, plus ridge regressions on their differences and on random
    features of the filled row; its variance is a combination of the linear VAE's and the smoothers' own.

    Parameters
    ----------
    sizes : ClosedFormSizes
    specs : sequence of CellSpec
    """

    n_members, n_draws = 1, 16
    W: Tensor  # (E, F, L), the best rank first; narrower ones padded with zeros
    b: Tensor  # (E, F)
    psi: Tensor  # (E, F)
    linear_weight: Tensor  # (E,)
    theta: Tensor  # (S, 3 H + 1, F)
    reference: Tensor  # (N, F)
    reference_variance: Tensor  # (N, F)
    reference_known: Tensor  # (N, F)
    linear_share: Tensor  # (F,) of the linear mean beside the smoothers'
    stack_coef: Tensor  # (F, H + 1)
    stack_most: Tensor  # (F,)
    directions: Tensor  # (F, P)
    knots: Tensor  # (P,)
    center: Tensor  # (I,)
    scale: Tensor  # (I,)
    feature_coef: Tensor  # (F, I)
    feature_most: Tensor  # (F,)
    variance_power: Tensor  # (2, F) of the linear VAE's variance and of the smoothers'
    empty_variance: Tensor  # (2, F) both, of a row without cells
    typical_variance: Tensor  # (F,) of the linear VAE, of cells that are hidden
    is_class: Tensor  # (F,) whether a feature says if a cell is of a class

    def __init__(self, sizes: ClosedFormSizes, specs: Sequence[CellSpec]) -> None:
        super().__init__()
        self.sizes, self.n_latent = sizes, sizes.rank
        self.likelihoods = ColumnLikelihoods(specs, sizes.log_scale_floor)
        E, F, L, N, P = sizes.n_linear, self.likelihoods.n_features, sizes.rank, sizes.n_reference, sizes.n_random
        n_inputs = RandomFeatures.n_inputs(F, P) if P else 0
        shapes: dict[str, tuple[int, ...]] = {"W": (E, F, L), "b": (E, F), "psi": (E, F), "linear_weight": (E,)}
        shapes |= dict.fromkeys(("reference", "reference_variance", "reference_known"), (N, F))
        shapes |= {"theta": (sizes.n_smoothers, 3 * N_HEADS + 1, F), "linear_share": (F,)}
        shapes |= {"stack_coef": (F, N_HEADS + 1), "stack_most": (F,)}
        shapes |= {"directions": (F, P), "knots": (P,), "center": (n_inputs,), "scale": (n_inputs,)}
        shapes |= {
            "feature_coef": (F, n_inputs),
            "feature_most": (F,),
            "variance_power": (2, F),
            "empty_variance": (2, F),
            "typical_variance": (F,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("is_class", self.likelihoods.indicator_range()[0].isfinite(), persistent=False)
        self._kept: _Prepared | None = None

    def config(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes), "specs": [asdict(spec) for spec in self.likelihoods.specs]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        return cls(ClosedFormSizes(**config["sizes"]), [CellSpec.from_json(spec) for spec in config["specs"]])

    @property
    def weights(self) -> Tensor:
        return self.W

    @property
    def linear_vaes(self) -> list[FactorAnalysis]:
        """One per rank, the best first."""
        return [FactorAnalysis(*part) for part in zip(self.W, self.b, self.psi, strict=True)]

    @property
    def reference_rows(self) -> Reference:
        """The training rows that the smoothers look at."""
        return Reference(self.reference, self.reference_variance, self.reference_known)

    @property
    def random_features(self) -> RandomFeatures:
        """The inputs of the last regression."""
        return RandomFeatures(self.directions, self.knots, self.center, self.scale)

    @property
    def layout(self) -> Layout:
        """Where classes of many levels stand."""
        return Layout.of(self.likelihoods.feature_columns, self.likelihoods.indicator_range().to(self.W))

    @property
    def indicators(self) -> Indicators:
        """The features that stand for classes."""
        low_high = self.likelihoods.indicator_range().to(self.W)
        return Indicators(self.likelihoods.feature_columns, low_high)

    def given(self, x: Tensor, visible: Tensor, linear_vaes: Sequence[FactorAnalysis] | None = None) -> Given:
        """What the linear VAEs, or others of the same ranks, make of rows (B, F)."""
        best, *others = linear_vaes or self.linear_vaes
        m, chol = posterior(x, visible, best)
        cov = torch.cholesky_inverse(chol)
        own_mean = decode(m, best)
        mean = self.linear_weight[0] * own_mean
        for weight, linear in zip(self.linear_weight[1:], others, strict=True):
            m, _ = posterior(x, visible, linear)
            mean = mean + weight * decode(m, linear)
        return Given(x, visible.to(x), own_mean, cell_variance(cov, best), mean, cov)

    def smooth(
        self, theta: Tensor, given: Given, place: Tensor, backbone: FactorAnalysis, prepared: Prepared | None = None
    ) -> Smoothed:
        """What one smoother (3 H + 1, F) makes of rows that stand at `place` (B,) among the reference rows, or -1."""
        theta = theta.unsqueeze(0)
        prepared, parts = prepared or prepare(theta, self.reference_rows, self.layout, backbone), []
        for rows in row_slices(len(place), 2 * N_HEADS * len(self.reference)):
            q = Given(*(part[rows].unsqueeze(0) for part in given))
            votes = estimate(theta, prepared, q, place[rows].unsqueeze(0), backbone, with_variance=True)
            answer, variance = mix(theta, q.mean, votes)
            parts.append(Smoothed(answer[0], votes.mean[0], variance[0]))
        return Smoothed(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def doubt(self, variance: Tensor) -> Tensor:
        """How far cells (B, F) may leave the linear mean: not at all where that is exact.

        The linear VAE's variance in units of what it is for a typical cell of the column, at most one; one for classes.
        """
        return torch.where(self.is_class, 1, (variance / self.typical_variance).clamp(max=1))

    def variance(self, linear: Tensor, smoother: Tensor) -> Tensor:
        """Variance of cells (B, F): a product of powers of the linear VAE's and the smoothers'.

        Both in units of what they are of a row without cells, whose variance is the column's own.
        """
        logs = self.log_variances(linear, smoother)
        return self.empty_variance[0] * (self.variance_power.unsqueeze(1) * logs).sum(0).exp()

    def log_variances(self, linear: Tensor, smoother: Tensor) -> Tensor:
        """Logarithms of both variances (2, B, F) in these units; zero of smoothers that say nothing."""
        empty = self.empty_variance
        of_smoother = (smoother / empty[1].clamp(min=SMALLEST_VARIANCE)).clamp(min=_SMALLEST_SHARE, max=1).log()
        of_linear = (linear / empty[0]).clamp(max=1).log()
        return torch.stack([of_linear, torch.where(empty[1] > SMALLEST_VARIANCE, of_smoother, 0)])

    @staticmethod
    def stacking_inputs(smoothed: Smoothed, linear: Tensor, mixed: Tensor) -> Tensor:
        """Votes and linear mean less the answer that mixes them, (B, F, H + 1)."""
        return torch.cat([smoothed.votes, linear.unsqueeze(1)], 1).sub(mixed.unsqueeze(1)).transpose(1, 2)

    def moments(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Given]:
        """Mean and variance (B, F) of every feature of rows (B, D), and what the linear VAEs make of them."""
        visible = observed.index_select(-1, self.likelihoods.feature_columns)
        x = torch.where(visible, self.likelihoods.features(values), 0)
        given = self.given(x, visible)
        if not self.sizes.n_reference:
            return given.mean, self.variance(given.variance, torch.zeros_like(given.variance)), given
        kept = self._prepared()
        place, best = self._place(x, given.visible), self.linear_vaes[0]
        each = [self.smooth(t, given, place, best, p) for t, p in zip(self.theta, kept.smoothers, strict=True)]
        smoothed = Smoothed(*(reduce(torch.add, part) / len(part) for part in zip(*each, strict=True)))
        doubt = self.doubt(given.variance)
        mean = given.mean + doubt * (1 - self.linear_share) * (smoothed.answer - given.mean)
        inputs = doubt.unsqueeze(-1) * self.stacking_inputs(smoothed, given.mean, mean)
        mean = mean + Correction(self.stack_coef, self.stack_most).bounded((inputs * self.stack_coef).sum(-1))
        if self.sizes.n_random:
            features = self.random_features(torch.where(visible, x, mean), given.visible)
            added = doubt * (features @ self.feature_coef.T)
            added = Correction(self.feature_coef, self.feature_most).bounded(added)
            mean = kept.indicators.moved(mean, added)
        return mean, self.variance(given.variance, smoothed.variance).clamp(min=SMALLEST_VARIANCE), given

    @torch.no_grad()
    def cell_moments(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Expectations (n, A) and, of numbers, variances (n, D) of the cells of rows (n, D), in bounded memory."""
        parts = []
        for rows in row_slices(len(values), self.numbers_per_row(1)):
            mean, variance, _ = self.moments(values[rows], observed[rows])
            expectations = self.likelihoods.gaussian_expectations(mean, 0.5 * variance.log())
            parts.append((expectations, variance[:, self.likelihoods.first_features]))
        expectations, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        return expectations, variance

    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} is solved, not trained.")

    def expectations(self, values: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """Exact, without draws: the noise is not used."""
        moments = [self.moments(*rows)[:2] for rows in zip(values, observed.expand(values.shape), strict=True)]
        mean, variance = (torch.stack(part) for part in zip(*moments, strict=True))
        return self.likelihoods.gaussian_expectations(mean, 0.5 * variance.log())

    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of a row share the linear VAE's latent, stretched to what the cell's variance is here."""
        params = []
        best = self.linear_vaes[0]
        for v, o in zip(values, observed.expand(values.shape), strict=True):
            mean, variance, given = self.moments(v, o)
            z = torch.einsum("bij,kj->kbi", torch.linalg.cholesky(given.cov), noise)
            stretch = (variance / given.variance).sqrt()
            log_scale = (stretch * best.psi.sqrt()).log().expand(len(noise), -1, -1)
            params.append(self.likelihoods.from_gaussian(mean + stretch * (z @ best.W.T), log_scale))
        stacked = torch.stack(params)
        return stacked, torch.zeros_like(stacked[..., 0])

    def numbers_per_row(self, n_draws: int) -> int:
        F, sizes = self.likelihoods.n_features, self.sizes
        return n_draws * self.likelihoods.n_params + (8 + 4 * N_HEADS) * F + 2 * sizes.rank**2 + 2 * sizes.n_random

    def _prepared(self) -> _Prepared:
        """Two threads may both make it: they make the same."""
        kept = self._kept
        if kept is None or kept.key.device != self.W.device:
            known = self.reference_known
            uniform = torch.rand(2 * known.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            key = uniform.to(known.device) + 0.5
            codes, order = (torch.cat([self.reference * known, known], -1).double() @ key).sort()
            those = self.reference_rows, self.layout, self.linear_vaes[0]
            smoothers = [prepare(theta.unsqueeze(0), *those) for theta in self.theta]
            kept = self._kept = _Prepared(smoothers, key, codes, order, self.indicators)
        return kept

    def _place(self, x: Tensor, visible: Tensor) -> Tensor:
        """Where each row stands among the reference rows (the same cells observed, and the same in them), or -1.

        By a random projection in double precision, and then cell by cell: a row of the training table is known by what
        it holds, in whatever batch it comes.
        """
        kept = self._prepared()
        sought = torch.cat([x, visible], -1).double() @ kept.key
        slack = 1e-9 * (1 + sought.abs())
        at = torch.searchsorted(kept.codes, sought - slack).clamp(max=len(kept.codes) - 1)
        place = torch.full_like(at, -1)
        near = ((kept.codes[at] - sought).abs() <= slack).nonzero().squeeze(-1)
        found = kept.order[at[near]]
        known = self.reference_known[found]
        same = ((self.reference[found] * known == x[near]) & (known == visible[near])).all(-1)
        place[near[same]] = found[same]
        return place


class ClosedFormStack(VAE):
    """Closed forms with other smoothers and other random features, as members of one model.

    Parameters
    ----------
    *models : ClosedFormVAE
        Of the same columns.
    """

    n_draws = ClosedFormVAE.n_draws

    def __init__(self, *models: ClosedFormVAE) -> None:
        super().__init__()
        self.n_members, self.n_latent = len(models), max(model.n_latent for model in models)
        for k, model in enumerate(models):
            self.add_module(str(k), model)
        self.likelihoods = models[0].likelihoods

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        return cls(*(parts[str(k)] for k in range(len(parts))))

    @property
    def models(self) -> list[ClosedFormVAE]:
        """The members."""
        return [getattr(self, str(k)) for k in range(self.n_members)]

    @property
    def weights(self) -> Tensor:
        return self.models[0].W

    def cell_moments(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Averages over the members of expectations (n, A) and of variances (n, D)."""
        each = zip(*(model.cell_moments(values, observed) for model in self.models), strict=True)
        expectations, variance = (torch.stack(part).mean(0) for part in each)
        return expectations, variance

    def loss(self, batch: Batch, n_draws: int, generator: Generator) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} is solved, not trained.")

    def expectations(self, values: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        each = zip(self.models, *self._per_member(values, observed), strict=True)
        return torch.cat([model.expectations(v, o, noise) for model, v, o in each])

    def importance_samples(self, values: Tensor, observed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        each = zip(self.models, *self._per_member(values, observed), strict=True)
        samples = [model.importance_samples(v, o, noise[:, : model.n_latent]) for model, v, o in each]
        params, log_w = zip(*samples, strict=True)
        return torch.cat(params), torch.cat(log_w)

    def numbers_per_row(self, n_draws: int) -> int:
        return sum(model.numbers_per_row(n_draws) for model in self.models)

    def _per_member(self, values: Tensor, observed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rows (M or 1, B, D) of each member, (1, B, D)."""
        shape = (self.n_members, *values.shape[1:])
        return list(values.expand(shape).split(1)), list(observed.expand(shape).split(1))
