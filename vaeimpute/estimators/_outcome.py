"""Completed tables that are compatible with the model of an outcome: what `impute(outcome=)` does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaeimpute.estimators._domains import Covariates
from vaeimpute.frames.containers import repeated, rows_of, without
from vaeimpute.frames.encoded import Encoded
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.frames.schema import Kind
from vaeimpute.outcomes.families import FAMILIES
from vaeimpute.outcomes.outcome import Outcome, check_rowwise, designer
from vaeimpute.outcomes.sampler import OutcomeChain

N_ROUNDS, N_SWEEPS, N_MORE_ROUNDS = 10, 3, 3  # of proposals by new parameters; of choices among them
FEWEST, MOST = 30, 480  # new proposals of a row in a round
FEW_EFFECTIVE, SHARE = 5, 0.05  # where more rows have so few that go with the outcome, there are to be more
_STACKLEVEL = 4  # of a warning, from here to the caller of `impute`


class CompatibleDraws:
    """Completions of one table for one outcome.

    Parameters
    ----------
    outcome : Outcome
    encoder : TableEncoder
    X : table of shape (n, D)
    encoded : Encoded
        X as numbers.
    modelled : bool ndarray of shape (D,)
    covariates : callable
        ``(rows, column, number) -> Covariates`` of the modelled columns but one.
    fill : callable
        ``(table, values, missing) -> table``.
    """

    def __init__(
        self,
        outcome: Outcome,
        encoder: TableEncoder,
        X: Any,
        encoded: Encoded,
        modelled: NDArray[np.bool_],
        covariates: Callable[[NDArray, int, int], Covariates],
        fill: Callable[[Any, NDArray, NDArray[np.bool_]], Any],
    ) -> None:
        self.column = _position(outcome, encoder, modelled)
        self.family, self.encoder, self.X, self.encoded = FAMILIES[outcome.family], encoder, X, encoded
        self.covariates, self.fill, self.design = covariates, fill, designer(outcome.terms)
        self.y, self.modelled = _outcomes(outcome, encoder, self.column, encoded), modelled
        self.missing = encoded.missing.copy()
        self.missing[:, self.column] = False
        self.rows = np.flatnonzero((self.missing & modelled).any(1))
        self.n_proposals, self.short = FEWEST, [0.0]
        self._scaling: tuple[NDArray, NDArray, NDArray] | None = None
        self._stacks: dict[int, tuple[Any, NDArray[np.bool_]]] = {}

    def draw(self, number: int, seed: int) -> NDArray:
        """Values (n, D) of completed table `number`."""
        values = self.encoded.values.copy()
        place = int(self.modelled[: self.column].sum())
        covariates, cells = self.covariates(self.rows, place, number), np.ix_(self.rows, self.modelled)
        values[cells] = covariates.propose(1)[0].cpu().numpy()
        terms = self._all_terms(values)
        chain = OutcomeChain(self.family, terms, self.rows, self.y, np.random.default_rng([seed, number]))
        rounds, short = N_ROUNDS if len(self.rows) else 1, 0.0
        while rounds:
            proposals = covariates.propose(self.n_proposals).cpu().numpy()
            proposed = np.concatenate([chain.terms[None, self.rows], self._terms(proposals, terms.shape[1])])
            taken = chain.take(proposed, N_SWEEPS)
            values[cells] = np.concatenate([values[cells][None], proposals])[taken.proposal, np.arange(len(self.rows))]
            covariates.update(torch.as_tensor(values[:, self.modelled]))
            rounds, short = rounds - 1, self._share_short(taken.effective)
            if not rounds and short > SHARE and self.n_proposals < MOST:
                self.n_proposals, rounds = 2 * self.n_proposals, N_MORE_ROUNDS
        self.short.append(short)
        values[:, self.column] = self.encoder.standardised(chain.y, self.column)
        return values

    def warn(self) -> None:
        """Say where too few proposals went with the outcome."""
        if max(self.short) > SHARE:
            warnings.warn(
                f"Of {max(self.short):.0%} of the incomplete rows, fewer than {FEW_EFFECTIVE} of {MOST} proposals go "
                "with their outcome: their draws repeat a few values, and standard errors may be too small. The terms "
                "explain the outcome nearly without error, or its model does not fit.",
                UserWarning,
                stacklevel=_STACKLEVEL,
            )

    def _share_short(self, effective: NDArray) -> float:
        """Share of the incomplete rows with an outcome that few proposals go with."""
        known = ~np.isnan(self.y[self.rows])
        return float((effective[known] < FEW_EFFECTIVE).mean()) if known.any() else 0.0

    def _all_terms(self, values: NDArray) -> NDArray:
        """Terms (n, p) of all rows of a completed table."""
        table = without(self.fill(self.X, values, self.missing), self.column)
        raw = self.design(table, len(values))
        if self._scaling is None:
            center, scale = raw.mean(0), raw.std(0)
            self._scaling = center, scale, scale > 1e-12 * (np.abs(center) + 1)
            half = np.arange((len(raw) + 1) // 2)
            check_rowwise(raw[half], self.design(rows_of(table, half), len(half)))
            if (n_known := int((~np.isnan(self.y)).sum())) <= raw.shape[1] + 1:
                raise ValueError(f"{raw.shape[1]} terms need more rows with an outcome than X has ({n_known}).")
        return self._scaled(raw)

    def _terms(self, proposals: NDArray, n_terms: int) -> NDArray:
        """Terms (K, r, p) of proposals (K, r, d) of the modelled columns."""
        K, r, _ = proposals.shape
        if r == 0:
            return np.empty((K, 0, n_terms))
        if K not in self._stacks:
            self._stacks = {K: (repeated(rows_of(self.X, self.rows), K), np.tile(self.missing[self.rows], (K, 1)))}
        values = np.zeros((K * r, len(self.modelled)))
        values[:, self.modelled] = proposals.reshape(K * r, -1)
        X, missing = self._stacks[K]
        return self._scaled(self.design(without(self.fill(X, values, missing), self.column), K * r)).reshape(K, r, -1)

    def _scaled(self, raw: NDArray) -> NDArray:
        assert self._scaling is not None  # of the first table
        center, scale, varies = self._scaling
        if raw.shape[1] != len(center):
            raise ValueError(
                f"terms gave {raw.shape[1]} columns, but {len(center)} before. They must always be the same."
            )
        return np.column_stack([np.ones(len(raw)), ((raw - center) / np.where(varies, scale, 1))[:, varies]])


def _position(outcome: Outcome, encoder: TableEncoder, modelled: NDArray[np.bool_]) -> int:
    if outcome.column not in encoder.names:
        raise ValueError(
            f"outcome names the column {outcome.column!r}, which X does not have. Columns: {encoder.names}."
        )
    j = encoder.names.index(outcome.column)
    if not modelled[j]:
        raise ValueError(f"Column {outcome.column!r}: it had no observed value in fit, and cannot be an outcome.")
    return j


def _outcomes(outcome: Outcome, encoder: TableEncoder, j: int, encoded: Encoded) -> NDArray:
    """Outcomes (n,) in the user's unit, NaN where hidden; refused if they are not what the family is of."""
    observed = encoded.observed[:, j]
    if not observed.any():
        raise ValueError(f"Column {outcome.column!r}: an outcome needs observed values, but X has none.")
    column = encoder.schema.columns[j]
    y = np.where(observed, encoder.numbers(encoded.values[:, j], j), np.nan)
    seen = y[observed]
    fits = {
        "gaussian": encoder.is_numeric[j] and column.kind is not Kind.DATETIME,
        "binomial": column.n_categories == 2 or (encoder.is_numeric[j] and bool(np.isin(seen, (0, 1)).all())),
        "poisson": encoder.is_numeric[j] and bool(((seen >= 0) & (seen == np.rint(seen))).all()),
    }
    if not fits[outcome.family]:
        want = {"gaussian": "numbers", "binomial": "two classes, or zeros and ones", "poisson": "non-negative integers"}
        got = f"{column.n_categories} classes" if column.n_categories else f"kind '{column.kind}', such as {seen[0]:g}"
        raise ValueError(
            f"Column {outcome.column!r}: family {outcome.family!r} needs {want[outcome.family]}, but it has {got}."
        )
    return y
