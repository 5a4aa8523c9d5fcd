"""What both estimators share: fitting the core, scores, latents, saving and pickling."""

from __future__ import annotations

import json
import os
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import MissingValues, StrOptions
from sklearn.utils.validation import check_is_fitted

from vaeimpute import persistence
from vaeimpute.estimators._containers import check_order, checked, is_frame, like
from vaeimpute.estimators._state import LEARNED, from_learned_state, from_plain_params, learned_state, plain_params
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.frames.schema import Column
from vaeimpute.images.encoder import ImageEncoder, bounded, pixel_shape
from vaeimpute.images.fit import Images
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.pixels import PIXELS, Pixels
from vaeimpute.tables.data import Table
from vaeimpute.training.runtime import draw_seed, resolve_device

_MANY, _UNLIKE = 50, 0.8  # values of a column of classes, and the share of different ones that makes it an identifier


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

    _learned: ClassVar[tuple[str, ...]] = LEARNED

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    @property
    def _shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of images; None for tables."""
        return None if self.image_shape is None else pixel_shape(self.image_shape)

    def _fit(self, X: Any) -> None:
        """Learn on a clone, and take over what it learnt once all is done."""
        self._validate_params()
        device = resolve_device(self.device)
        fitted = clone(self)
        X = checked(fitted, X, reset=True, shape=self._shape)
        fitted.encoder_ = self._new_encoder(X)
        seed = draw_seed(self.random_state)
        X = X if self._shape is None else bounded(X, self._shape, seed)
        interrupted = fitted._learn(fitted._opened(X, device), seed)
        for name in self._learned:
            self.__dict__.pop(name, None)
        self.__dict__.update(fitted._what_was_learned())
        if interrupted:
            warnings.warn("fit was interrupted: the best weights so far are kept.", UserWarning, stacklevel=3)

    def _new_encoder(self, X: Any) -> TableEncoder | ImageEncoder:
        if self._shape is None:
            if isinstance(self.kinds, str):
                raise ValueError(f"kinds must be a dict of column name to kind, got {self.kinds!r}.")
            encoder = TableEncoder.fit(X, kinds=self.kinds, missing_values=self.missing_values)
            _report_poor(encoder.schema.columns, stacklevel=5)
            return encoder
        if isinstance(self.kinds, dict):
            raise ValueError(f"With image_shape, kinds must be one of {sorted(PIXELS)} for all pixels, got a dict.")
        pixels = ImageEncoder.fit(X, self._shape, kind=self.kinds, missing_values=self.missing_values)
        if self.networks == "mlp" and pixels.kind == "count":  # a column of a table is standardised
            return ImageEncoder.fit(X, self._shape, kind="numeric", missing_values=self.missing_values)
        return pixels

    def _opened(self, X: Any, device: torch.device) -> Table | Images:
        """The training data as tensors; sets which columns are modelled, and which had holes."""
        encoder = self.encoder_
        values, observed = encoder.encode(X)
        self.had_holes_, self.modelled_ = ~observed.all(0), np.asarray(observed.any(0))
        if isinstance(encoder, ImageEncoder) and self.networks == "auto":
            self.modelled_[:] = True  # a pixel that is always missing has neighbours
            x, o = torch.as_tensor(values, device=device), torch.as_tensor(observed, device=device)
            return Images(x, o, encoder.shape, encoder.kind, encoder.n_levels)
        columns = np.flatnonzero(self.modelled_)
        if isinstance(encoder, ImageEncoder) and (n_empty := len(self.modelled_) - len(columns)):
            what = f'Pixels without any observed value are not modelled: {n_empty}. networks="auto" fills them.'
            warnings.warn(what, UserWarning, stacklevel=4)
        return Table(
            torch.as_tensor(values[:, columns], device=device),
            torch.as_tensor(observed[:, columns], device=device),
            [encoder.kinds[j] for j in columns],
            [encoder.levels[j] for j in columns],
        )

    @abstractmethod
    def _learn(self, data: Table | Images, seed: int) -> bool:
        """Fit the core and set what it learnt; say whether Ctrl-C ended that early."""

    @property
    @abstractmethod
    def _likelihoods(self) -> ColumnLikelihoods | Pixels:
        """Those of the modelled columns."""

    @abstractmethod
    def _log_likelihood(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Of the observed cells of each row (n,), in nats, for encoded cells of the modelled columns."""

    @abstractmethod
    def _strangeness(self, values: torch.Tensor, observed: torch.Tensor) -> NDArray:
        """Comparable anomaly score of each row, (n,)."""

    @abstractmethod
    def _cell_scores(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """How strange each cell of the modelled columns is given the other observed cells, (n, d), in nats."""

    @property
    @abstractmethod
    def _weights(self) -> torch.Tensor:
        """Any tensor of the core: it has the dtype and the device to compute with."""

    def _what_was_learned(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name in self._learned}

    def _encoded(self, X: Any) -> tuple[Any, NDArray, NDArray]:
        """Checked X, its values and which of them are observed, (n, D)."""
        check_is_fitted(self)
        if self._shape is None and is_frame(X) and self.encoder_.schema.container != "numpy":
            check_order(X, self.encoder_.schema.names)
        X = checked(self, X, reset=False, shape=self._shape)
        values, observed = self.encoder_.encode(X)
        return X, values, observed

    def _tensors(self, values: NDArray, observed: NDArray) -> tuple[torch.Tensor, torch.Tensor]:
        """The modelled columns on the model's device."""
        weights = self._weights
        return (
            torch.as_tensor(values[:, self.modelled_]).to(weights),
            torch.as_tensor(observed[:, self.modelled_]).to(weights.device),
        )

    def _all_columns(self, modelled: torch.Tensor) -> NDArray:
        """Cells of the modelled columns (n, d) as an array of all columns (n, D); zero in the others."""
        out = np.zeros((len(modelled), len(self.modelled_)))
        out[:, self.modelled_] = modelled.double().cpu().numpy()
        return out

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of the rows: higher is better, so that a grid search needs no `scoring`.

        Parameters
        ----------
        X : table of shape (n, D)
        y : ignored

        Returns
        -------
        float
            Nats of the observed cells of a row, for numbers as densities per unit of the column. A detector takes the
            indicators of classes as numbers too: good to compare fits, but no probability. A detector of images fills
            holes first, and takes the density of the whole image under its mixture.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> imputer = VAEImputer(random_state=0).fit(X)
        >>> imputer.score(X) > imputer.score(X[:, ::-1])
        True
        """
        return float(self._nats(X).mean())

    def _nats(self, X: Any) -> NDArray:
        """Log-likelihood of each row's observed cells, in the units of the table."""
        _, values, observed = self._encoded(X)
        evidence = self._log_likelihood(*self._tensors(values, observed))
        counted = observed.copy()
        counted[:, self.modelled_] &= self._likelihoods.densities
        return evidence.double().cpu().numpy() + (self.encoder_.log_jacobian(values) * counted).sum(1)

    def anomaly_score(self, X: Any) -> NDArray:
        """How strange each row is, comparable between rows with different holes.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray of shape (n,)
            Higher is stranger; a row with nothing observed is unremarkable. For an imputer of tables, the negative
            log-likelihood in standard deviations from what training rows with the same cells observed have (the fit has
            seen these: of a small table, new rows score a little higher). For a detector, and for images, the surprise:
            minus the log of the share of ordinary rows, with about as many cells observed, that are at least as
            strange.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> usual, strange, empty = VAEImputer(random_state=0).fit(X).anomaly_score([[5, 10], [5, 40], [np.nan] * 2])
        >>> bool(usual < strange), bool(empty < strange)
        (True, True)
        """
        _, values, observed = self._encoded(X)
        return self._strangeness(*self._tensors(values, observed))

    def cell_anomaly_score(self, X: Any) -> Any:
        """How strange each cell is, given the rest of its row.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        table of shape (n, D)
            ``-log p(x_j | rest of the row)`` with the cell hidden, in nats, and made comparable between columns: the
            imputer takes off what an ordinary cell of the column scores, the detector half of what the cell would score
            if it were wrong; it adds how rare it is that a cell does not stand where those of its column do (4.37 among
            whole numbers). Of images, both hide the pixel's tile, and take off what an ordinary pixel there scores. NaN
            where X has a hole. Container and index as X has them.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

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
        X, values, observed = self._encoded(X)
        scores = self._all_columns(self._cell_scores(*self._tensors(values, observed)))
        return like(X, np.where(observed & self.modelled_, scores, np.nan))

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
        tensors, header = learned_state(self._what_was_learned())
        try:
            json.dumps(header["encoder"])
        except TypeError as error:
            raise TypeError(f"Column names must be text or numbers to be saved ({error}). Rename them.") from error
        persistence.save(path, tensors, header | {"class": type(self).__name__, "params": plain_params(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device | None = None) -> Any:
        """Read an estimator that `save` wrote.

        Parameters
        ----------
        path : str or path-like
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
            estimator.__dict__.update(from_learned_state(tensors, header, here))
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
        tensors, header = learned_state(self._what_was_learned())
        others = {key: value for key, value in state.items() if key not in self._learned}
        return others | {"_fitted": {"tensors": tensors, "header": header}}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({key: value for key, value in state.items() if key != "_fitted"})
        if "_fitted" in state:
            here = resolve_device(self.device, or_cpu=True)
            self.__dict__.update(from_learned_state(**state["_fitted"], device=here))


def _report_poor(columns: tuple[Column, ...], stacklevel: int) -> None:
    """Say which columns have too few values to learn from, or too many; refuse a table of nothing but holes."""
    empty = [column.name for column in columns if column.n_observed == 0]
    single = [column.name for column in columns if column.n_observed == 1]
    if len(empty) == len(columns):
        raise ValueError("X has no observed value in any column: there is nothing to learn from.")
    if empty:
        what = f"Columns without any observed value are not modelled: {empty}."
        warnings.warn(what, UserWarning, stacklevel=stacklevel)
    unlike = [c.name for c in columns if c.n_observed >= _MANY and c.n_levels > _UNLIKE * c.n_observed]
    if unlike:
        what = f"Columns of classes where nearly every value is another one cannot be filled well: {unlike}. Drop them."
        warnings.warn(what, UserWarning, stacklevel=stacklevel)
    if single:
        what = f"Columns with a single observed value can only repeat it: {single}."
        warnings.warn(what, UserWarning, stacklevel=stacklevel)
