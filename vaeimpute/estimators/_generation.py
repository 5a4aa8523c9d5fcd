"""What the latent variables give: random completions, new rows, likelihoods, latent means."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from vaeimpute.estimators._base import BaseVAE
from vaeimpute.estimators._containers import repeated
from vaeimpute.training.loop import seeded
from vaeimpute.training.runtime import draw_seed, positive
from vaeimpute.vae import inference
from vaeimpute.vae.inference import Ensemble


class GenerativeVAE(BaseVAE):
    """An estimator whose core is an `Ensemble` of readings."""

    ensemble_: Ensemble

    @abstractmethod
    def _filled(self, X: Any, values: NDArray, observed: NDArray) -> Any:
        """X with the cells of ``values`` (n, D) in its holes."""

    def sample(self, n_samples: int = 1, given: Any = None, random_state: Any = None) -> Any:
        """Synthetic rows, or random completions of given rows.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows; with `given`, the number of completions of each row (then the tables are stacked).
        given : table of shape (n, D), default=None
            Rows with holes to complete by conditional draws.
        random_state : int, RandomState or None, default=None

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
        n_samples = positive("n_samples", n_samples)
        if given is None:
            with seeded(draw_seed(random_state)):
                rows = inference.sample(self.ensemble_, n_samples)
            return self.encoder_.build(self._drawn(rows))
        given, values, observed = self._encoded(given)
        draws = self._draws(values, observed, n_samples, random_state)
        stacked = repeated(given, n_samples)
        completed = self._drawn(draws.flatten(0, 1))
        return self._filled(stacked, completed, np.tile(observed, (n_samples, 1)))

    def score_samples(self, X: Any) -> NDArray:
        """Importance-weighted log-likelihood of each row's observed cells under the joint reading.

        Parameters
        ----------
        X : table of shape (n, D)
            May have holes.

        Returns
        -------
        ndarray of shape (n,)
            Nats, for numbers as densities per unit of the column. A row with fewer observed cells has fewer terms:
            use `anomaly_score` to compare rows with different holes.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Notes
        -----
        ``logsumexp_k log w_k - log K`` (Burda et al. 2016, eq. 8), averaged as a density over the members.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEImputer(random_state=0).fit(X).score_samples([[5, 10], [5, np.nan], [np.nan, np.nan]]).shape
        (3,)
        """
        return self._nats(X)

    def encode(self, X: Any) -> NDArray:
        """Latent means of the joint reading (its first member).

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray of shape (n, L)

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
        _, values, observed = self._encoded(X)
        return inference.encode(self.ensemble_, *self._tensors(values, observed)).cpu().numpy()

    def decode(self, Z: Any) -> Any:
        """Expected rows given latents of the joint reading (its first member).

        Parameters
        ----------
        Z : array-like of shape (n, L)

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
        array([[10., 19.]])
        """
        check_is_fitted(self)
        Z = np.asarray(Z, dtype=float)
        n_latent = self.ensemble_.joint.n_latent
        if Z.ndim != 2 or Z.shape[1] != n_latent:
            raise ValueError(f"Z must have shape (n, {n_latent}), as `encode` gives it, but its shape is {Z.shape}.")
        if not np.isfinite(Z).all():
            raise ValueError("Z must be finite, but it holds NaN or infinity.")
        rows = inference.decode(self.ensemble_, torch.as_tensor(Z).to(self.ensemble_.share))
        return self.encoder_.build(self._all_columns(rows))

    def _draws(self, values: NDArray, observed: NDArray, n_draws: int, random_state: Any) -> torch.Tensor:
        """Random completions of the modelled columns, (n_draws, n, d); only rows with holes are worked on."""
        x, o = self._tensors(values, observed)
        rows = ~o.all(1)
        draws = x.repeat(n_draws, 1, 1)
        with seeded(draw_seed(random_state)):
            if rows.any():
                draws[:, rows] = inference.draw(self.ensemble_, x[rows], o[rows], n_draws)
        return draws

    def _drawn(self, cells: torch.Tensor) -> NDArray:
        """Drawn cells of the modelled columns (n, d) as an array of all columns (n, D)."""
        return self._all_columns(self._likelihoods.exact(cells))
