"""What both estimators share: fitting the core, scores, saving and pickling."""

from __future__ import annotations

import json
import os
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from narwhals.typing import IntoDataFrame, IntoDataFrameT
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from vaeimpute import persistence
from vaeimpute.anomaly.density import Density, FittedModels
from vaeimpute.estimators._domains import Domain, domain_of
from vaeimpute.estimators._sklearn_compat import MissingValues, StrOptions
from vaeimpute.estimators._state import from_learned_state, from_plain_params, learned, learned_state, plain_params
from vaeimpute.frames.containers import like
from vaeimpute.frames.encoded import Encoded
from vaeimpute.likelihoods.pixels import PIXELS
from vaeimpute.training.runtime import draw_seed, resolve_device


class BaseVAE(BaseEstimator, ABC):
    """Shared methods; the constructor parameters belong to the estimators."""

    _parameter_constraints: ClassVar[dict] = {
        "image_shape": [tuple, list, None],
        "networks": [StrOptions({"auto", "mlp"})],
        "kinds": [dict, StrOptions(set(PIXELS)), None],
        "missing_values": [MissingValues()],
        "dtype": [StrOptions({"float32", "float64"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    density_: Density
    device: str | torch.device
    random_state: Any

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    @property
    def _domain(self) -> Domain:
        return domain_of(self)

    @property
    def _is_robust(self) -> bool:
        """Whether the training rows are not to be trusted."""
        return False

    @property
    def had_holes_(self) -> NDArray[np.bool_]:
        """The former name of `has_missing_`."""
        has_missing = self.has_missing_  # before the warning: an estimator that is not fitted has neither
        warnings.warn("had_holes_ is now has_missing_; it goes with version 0.3.", FutureWarning, stacklevel=2)
        return has_missing

    def _fit(self, X: Any) -> None:
        """Learn on a clone, and take over what it learnt once all is done."""
        self._validate_params()
        device = resolve_device(self.device)
        fitted, domain = clone(self), self._domain
        X = domain.check(fitted, X, reset=True)
        seed = draw_seed(self.random_state)
        fitted.encoder_, encoded = domain.fit_encoder(self, X, seed, robust=self._is_robust)
        fitted.has_missing_, fitted.modelled_ = ~encoded.observed.all(0), domain.modelled(encoded)
        data = domain.to_data(fitted.encoder_, encoded, fitted.modelled_, device)
        models = fitted._learn(data, seed)
        fitted.density_ = models.density
        fitted._set_learned(models, encoded)
        for name in learned(self):
            delattr(self, name)
        self.__dict__.update(learned(fitted))
        if models.interrupted:
            warnings.warn("fit was interrupted: the best weights so far are kept.", UserWarning, stacklevel=3)
        elif models.left_out:
            what = f"time_budget was too short; left out: {', '.join(models.left_out)}. The best so far is kept."
            warnings.warn(what, UserWarning, stacklevel=3)

    @abstractmethod
    def _learn(self, data: Any, seed: int) -> FittedModels:
        """Fit the core."""

    @abstractmethod
    def _set_learned(self, models: FittedModels, encoded: Encoded) -> None:
        """Set the attributes of this estimator alone."""

    @abstractmethod
    def _log_likelihood(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Of the observed cells of each row (n,), in nats, for encoded cells of the modelled columns."""

    def _encoded(self, X: Any) -> tuple[Any, Encoded]:
        """Checked X, and X as numbers; encoded once a call."""
        check_is_fitted(self)
        X = self._domain.check(self, X, reset=False)
        return X, self.encoder_.encode(X)

    def _tensors(self, encoded: Encoded, rows: NDArray | slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and observed of the modelled columns on the model's device."""
        weights = self.density_.weights
        return (
            torch.as_tensor(encoded.values[rows][:, self.modelled_]).to(weights),
            torch.as_tensor(encoded.observed[rows][:, self.modelled_]).to(weights.device),
        )

    def _all_columns(self, modelled: torch.Tensor) -> NDArray:
        """Cells of the modelled columns (n, d) as an array of all columns (n, D); zero in the others."""
        out = np.zeros((len(modelled), len(self.modelled_)))
        out[:, self.modelled_] = modelled.double().cpu().numpy()
        return out

    def log_likelihood(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """Log-likelihood of each row's observed cells.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n,)
            In nats, for numbers as densities per unit of the column. A row with fewer observed cells has fewer terms:
            use `anomaly_score` to compare rows. An imputer's is the importance-weighted bound under its joint model. A
            detector takes the indicators of classes as numbers too: good to compare fits, but no probability. A
            detector of images fills missing pixels first, and takes the density of the whole image under its mixture.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Notes
        -----
        The imputer's is ``logsumexp_k log w_k - log K`` (Burda et al. 2016, eq. 8), averaged as a density over the
        members.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> VAEImputer(random_state=0).fit(X).log_likelihood([[5, 10], [5, np.nan], [np.nan, np.nan]]).round()[2]
        np.float64(0.0)
        """
        _, encoded = self._encoded(X)
        nats = self._log_likelihood(*self._tensors(encoded)).double().cpu().numpy()
        counted = encoded.observed.copy()
        counted[:, self.modelled_] &= self.density_.likelihoods.is_continuous
        return nats + (self.encoder_.log_jacobian(encoded.values) * counted).sum(1)

    def score(self, X: IntoDataFrame | ArrayLike, y: Any = None) -> float:
        """Mean log-likelihood of the rows: higher is better, so that a grid search needs no `scoring`.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.
        y : ignored
            Not used; scikit-learn's interface asks for it.

        Returns
        -------
        float
            The mean of `log_likelihood`.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> imputer = VAEImputer(random_state=0).fit(X)
        >>> imputer.score(X) > imputer.score(X[:, ::-1])
        True
        """
        return float(self.log_likelihood(X).mean())

    def anomaly_score(self, X: IntoDataFrame | ArrayLike) -> NDArray:
        """How anomalous each row is, comparable between rows with different missing cells, between fits and estimators.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        ndarray of shape (n,)
            The surprisal in nats: minus the log of the share of reference rows, with about as many cells observed, that
            are at least as anomalous (5 is one in 150), by an exponential tail beyond the 95% of them. A row with
            nothing observed is not anomalous. Reference rows are rows of the training table; a detector's were not seen
            by the member that scores them, an imputer's were (of a small table, new rows score a little higher).

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> usual, outlier, empty = VAEImputer(random_state=0).fit(X).anomaly_score([[5, 10], [5, 40], [np.nan] * 2])
        >>> bool(usual < 3 < outlier), bool(empty < outlier)
        (True, True)
        """
        _, encoded = self._encoded(X)
        return self.density_.anomaly_score(*self._tensors(encoded))

    def cell_anomaly_score(self, X: IntoDataFrameT | ArrayLike) -> IntoDataFrameT | NDArray:
        """How anomalous each cell is, given the rest of its row.

        Parameters
        ----------
        X : table of shape (n, D)
            Rows with the columns of the training table; cells may be missing.

        Returns
        -------
        table of shape (n, D)
            The surprisal in nats: minus the log of the share of reference cells, of all columns together, that are at
            least as anomalous, by an exponential tail beyond the 95% of them; NaN where X is missing. Container and
            index as X has them.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Notes
        -----
        What is ranked is ``-log p(x_j | rest of the row)`` with the cell hidden, made comparable between columns: the
        imputer takes off what a normal cell of the column has, the detector half of the log-density that the cell would
        have if it were wrong; it adds how rare it is that a cell does not stand where those of its column do (4.37
        among whole numbers). Of images, both hide the pixel's tile, and take off what a normal pixel there has.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> scores = VAEImputer(random_state=0).fit(X).cell_anomaly_score([[5, 10], [5, 40], [np.nan, 10]])
        >>> scores[:2] > 3
        array([[False, False],
               [ True,  True]])
        >>> np.isnan(scores[2])
        array([ True, False])
        """
        X, encoded = self._encoded(X)
        scores = self._all_columns(self.density_.cell_anomaly_score(*self._tensors(encoded)))
        return like(X, np.where(encoded.observed & self.modelled_, scores, np.nan))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one ``.safetensors`` file with a JSON header; never pickle.

        Parameters
        ----------
        path : str or path-like
            Replaced only once the new file is complete. A `random_state` that is a generator is saved as None.

        Raises
        ------
        NotFittedError, OSError, TypeError
            TypeError if the names of the columns are neither text nor numbers.

        Examples
        --------
        >>> import tempfile
        >>> from vaeimpute import VAEImputer
        >>> imputer = VAEImputer(random_state=0).fit(np.column_stack([np.arange(20.0), 2 * np.arange(20.0)]))
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> imputer.save(path)
        >>> VAEImputer.load(path)
        VAEImputer(random_state=0)
        """
        check_is_fitted(self)
        tensors, header = learned_state(learned(self))
        try:
            json.dumps(header["encoder"])
        except TypeError as error:
            raise TypeError(f"Column names must be text or numbers to be saved ({error}). Rename them.") from error
        persistence.save(path, tensors, header | {"class": type(self).__name__, "params": plain_params(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device | None = None) -> Self:
        """Read an estimator that `save` wrote.

        Parameters
        ----------
        path : str or path-like
            A file that `save` wrote.
        device : str, default=None
            Where to compute from now on; None takes what the estimator was made with, or the CPU if that is not here.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or if it is truncated, damaged, of another version or class, or not ours.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> VAEImputer.load("no_such_file.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: Model file 'no_such_file.safetensors' does not exist.
        """
        tensors, header = persistence.load(path)
        if header.get("class") != cls.__name__:
            raise ValueError(f"Model file {os.fspath(path)!r} holds a {header.get('class')}, not a {cls.__name__}.")
        wanted = None if device is None else resolve_device(device)
        try:
            estimator = cls(**from_plain_params(header["params"]))
            if wanted is not None:
                estimator.device = str(wanted)
            here = resolve_device(estimator.device, or_cpu=True)
            estimator.__dict__.update(from_learned_state(tensors, header, estimator._domain, here))
        except (KeyError, TypeError, RuntimeError) as error:  # names or shapes that are not those of this version
            raise ValueError(
                f"Model file {os.fspath(path)!r} does not fit this version of vaeimpute ({error}). Fit and save again."
            ) from error
        return estimator

    def __getstate__(self) -> dict:
        """Weights as NumPy arrays, so that a model fitted on a GPU unpickles on a machine without one."""
        state = super().__getstate__()
        if not self.__sklearn_is_fitted__():
            return state
        attributes = learned(self)
        tensors, header = learned_state(attributes)
        others = {key: value for key, value in state.items() if key not in attributes}
        fitted = {"tensors": tensors, "header": header, "format_version": persistence.FORMAT_VERSION}
        return others | {"_fitted": fitted}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({key: value for key, value in state.items() if key != "_fitted"})
        if "_fitted" in state:
            fitted = dict(state["_fitted"])
            if fitted.pop("format_version", None) != persistence.FORMAT_VERSION:
                raise ValueError("This pickle was made by another version of vaeimpute. Fit and pickle again.")
            here = resolve_device(self.device, or_cpu=True)
            self.__dict__.update(from_learned_state(**fitted, domain=self._domain, device=here))
