"""What an ensemble of models gives beside imputations: random completions, new rows, latent means."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from narwhals.typing import IntoDataFrame, IntoDataFrameT
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from vaeimpute.estimators._base import BaseVAE
from vaeimpute.estimators._validation import check_positive
from vaeimpute.frames.containers import repeated
from vaeimpute.frames.encoded import Encoded
from vaeimpute.training.runtime import draw_seed
from vaeimpute.vae import inference
from vaeimpute.vae.inference import Ensemble


class GenerativeVAE(BaseVAE):
    """An estimator whose core is an `Ensemble` of models."""

    ensemble_: Ensemble

    @abstractmethod
    def _filled(self, X: Any, values: NDArray, missing: NDArray, *, rounded: bool = False) -> Any:
        """X with the cells of ``values`` (n, D) where it is missing, rounded like the column's own if asked to."""

    def sample(
        self,
        n_samples: int = 1,
        given: IntoDataFrameT | ArrayLike | None = None,
        random_state: Any = None,
    ) -> IntoDataFrameT | NDArray:
        """Synthetic rows, or random completions of given rows.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows; with `given`, the number of completions of each row (then the tables are stacked).
        given : table of shape (n, D), default=None
            Rows to complete by conditional draws.
        random_state : int, RandomState or None, default=None
            Seeds the draws; None takes fresh entropy.

        Returns
        -------
        table of shape (n_samples, D), or (n_samples * n, D)
            Container and dtypes as in training, or as `given` has them; what `given` knows comes back bit for bit.

        Raises
        ------
        ValueError, TypeError
            If `given` does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> imputer = VAEImputer(random_state=0).fit(X)
        >>> imputer.sample(5, random_state=0).shape
        (5, 2)
        >>> imputer.sample(3, given=[[4.0, np.nan]], random_state=0)[:, 0]
        array([4., 4., 4.])
        """
        check_is_fitted(self)
        n_samples = check_positive("n_samples", n_samples)
        if given is None:
            rows = self.ensemble_.sample(n_samples, draw_seed(random_state))
            return self.encoder_.build(self._all_columns(rows), rounded=True)
        given, encoded = self._encoded(given)
        draws = self._draws(encoded, n_samples, draw_seed(random_state))
        completed = self._all_columns(draws.flatten(0, 1))
        missing = np.tile(encoded.missing, (n_samples, 1))
        return self._filled(repeated(given, n_samples), completed, missing, rounded=True)

    def score_samples(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """`log_likelihood` under the name that scikit-learn's densities give it.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n,)
            In nats.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> imputer = VAEImputer(random_state=0).fit(X)
        >>> bool((imputer.score_samples(X) == imputer.log_likelihood(X)).all())
        True
        """
        return self.log_likelihood(X)

    def encode(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """Latent means of the joint model (its first member).

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n, L)
            One row of latent means for each row of X.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEImputer(random_state=0).fit(X).encode(X).shape
        (20, 1)
        """
        _, encoded = self._encoded(X)
        return inference.encode(self.ensemble_, *self._tensors(encoded)).cpu().numpy()

    def decode(self, Z: ArrayLike) -> Any:
        """Expected rows given latents of the joint model (its first member).

        Parameters
        ----------
        Z : array-like of shape (n, L)
            Latents, as `encode` gives them.

        Returns
        -------
        table of shape (n, D)
            Container and dtypes as in training.

        Raises
        ------
        ValueError
            If Z has another shape, or a number that is not finite.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEImputer(random_state=0).fit(X).decode([[0.0]]).round()  # the middle of the table
        array([[ 9., 19.]])
        """
        check_is_fitted(self)
        Z = np.asarray(Z, dtype=float)
        n_latent = self.ensemble_.joint.n_latent
        if Z.ndim != 2 or Z.shape[1] != n_latent:
            raise ValueError(f"Z must have shape (n, {n_latent}), as `encode` gives it, but its shape is {Z.shape}.")
        if not np.isfinite(Z).all():
            raise ValueError("Z must be finite, but it holds NaN or infinity.")
        rows = inference.decode(self.ensemble_, torch.as_tensor(Z).to(self.ensemble_.stacking_weight))
        return self.encoder_.build(self._all_columns(rows))

    def _log_likelihood(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        return inference.log_likelihood(self.ensemble_, values, observed)

    def _draws(self, encoded: Encoded, n_draws: int, seed: int, **options: Any) -> torch.Tensor:
        """Random completions of the modelled columns, (n_draws, n, d); only incomplete rows are worked on."""
        x, o = self._tensors(encoded)
        rows = ~o.all(1)
        draws = x.double().repeat(n_draws, 1, 1)
        if rows.any():
            draws[:, rows] = self.ensemble_.draw(x[rows], o[rows], n_draws, seed, **options)
        return draws
