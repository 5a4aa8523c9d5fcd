"""What both estimators share: fitting the core, scores, latents, saving and pickling."""

from __future__ import annotations

import os
import warnings
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import Interval, MissingValues, StrOptions
from sklearn.utils.validation import check_is_fitted

from vaeimpute import inference, persistence
from vaeimpute.encoding import TableEncoder
from vaeimpute.estimators._containers import check_order, checked, is_frame, like
from vaeimpute.estimators._running import draw_seed, progress, resolve_device
from vaeimpute.estimators._state import LEARNED, from_learned_state, from_plain_params, learned_state, plain_params
from vaeimpute.fitting import Table, fit_table
from vaeimpute.schema import Column, Kind
from vaeimpute.scoring import MaskCalibration, column_surprise

_CALIBRATION_ROWS = 2000
_SURPRISE_ROWS = 200  # the mean of a column needs no more, and each takes a pass per column


class BaseVAE(BaseEstimator):
    """Shared methods; the constructor parameters belong to the estimators."""

    _parameter_constraints: ClassVar[dict] = {
        "kinds": [dict, None],
        "missing_values": [MissingValues()],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "dtype": [StrOptions({"float32", "float64"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _learned: tuple[str, ...] = LEARNED

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "ensemble_")

    def _fit(self, X: Any) -> None:
        """Learn on a clone, and take over what it learnt once all is done."""
        self._validate_params()
        device = resolve_device(self.device)
        fitted = clone(self)
        X = checked(fitted, X, reset=True)
        encoder = TableEncoder.fit(X, kinds=self.kinds, missing_values=self.missing_values)
        columns = encoder.schema.columns
        _report_poor(columns, stacklevel=4)
        values, observed = encoder.encode(X)
        modelled = np.asarray(observed.any(0))
        seed = draw_seed(self.random_state)
        table = Table(
            torch.as_tensor(values[:, modelled], device=device),
            torch.as_tensor(observed[:, modelled], device=device),
            [str(c.kind) for c, some in zip(columns, modelled, strict=True) if some],
            [c.n_levels for c, some in zip(columns, modelled, strict=True) if some],
        )
        with progress(self.verbose) as on_check:
            fitted.ensemble_, fitted.history_, interrupted = fit_table(
                table,
                seed=seed,
                dtype=getattr(torch, self.dtype),
                time_budget=self.time_budget,
                on_check=on_check,
            )
        fitted.n_iter_ = max(record["step"] for record in fitted.history_)
        fitted.encoder_, fitted.modelled_, fitted.had_holes_ = encoder, modelled, ~observed.all(0)
        fitted.mask_calibration_, fitted.cell_surprise_ = _calibrate(fitted.ensemble_, table, seed)
        for name in self._learned:
            self.__dict__.pop(name, None)
        self.__dict__.update(fitted._what_was_learned())
        if interrupted:
            warnings.warn("fit was interrupted: the best weights so far are kept.", UserWarning, stacklevel=3)

    def _what_was_learned(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name in self._learned}

    def _encoded(self, X: Any) -> tuple[Any, NDArray, NDArray]:
        """Checked X, its values and which of them are observed, (n, D)."""
        check_is_fitted(self)
        schema = self.encoder_.schema
        if is_frame(X) and schema.container != "numpy":
            check_order(X, schema.names)
        X = checked(self, X, reset=False)
        values, observed = self.encoder_.encode(X)
        return X, values, observed

    def _tensors(self, values: NDArray, observed: NDArray) -> tuple[torch.Tensor, torch.Tensor]:
        """The modelled columns on the model's device."""
        share = self.ensemble_.share
        return (
            torch.as_tensor(values[:, self.modelled_]).to(share),
            torch.as_tensor(observed[:, self.modelled_]).to(share.device),
        )

    def _all_columns(self, modelled: torch.Tensor) -> NDArray:
        """Modelled columns (n, d) as an array of all columns (n, D); zero in the others."""
        out = np.zeros((len(modelled), len(self.modelled_)))
        out[:, self.modelled_] = modelled.double().cpu().numpy()
        return out

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
        _, values, observed = self._encoded(X)
        evidence = inference.log_evidence(self.ensemble_, *self._tensors(values, observed))
        return evidence.double().cpu().numpy() + (self._log_jacobian(values) * observed).sum(1)

    def _log_jacobian(self, values: NDArray) -> NDArray:
        """``log |d encoded / d user's unit|`` of each cell, (n, D); zero where the likelihood is a probability."""
        out = np.zeros_like(values)
        modelled = np.flatnonzero(self.modelled_)
        for j, spec in zip(modelled, self.ensemble_.joint.likelihoods.specs, strict=True):
            column = self.encoder_.schema.columns[j]
            if spec.family == "gaussian":
                out[:, j] = -np.log(column.scale)
                if column.kind is Kind.POSITIVE:
                    out[:, j] -= values[:, j] * column.scale + column.center
        return out

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`: higher is better, so that a grid search needs no `scoring`.

        Parameters
        ----------
        X : table of shape (n, D)
        y : ignored

        Returns
        -------
        float

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> imputer = VAEImputer(random_state=0).fit(X)
        >>> imputer.score(X) > imputer.score(X[:, ::-1])
        True
        """
        return float(self.score_samples(X).mean())

    def anomaly_score(self, X: Any) -> NDArray:
        """How strange each row is, comparable between rows with different holes.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray of shape (n,)
            Negative log-likelihood in standard deviations from what rows with the same cells observed have; higher is
            stranger; 0 for a row with nothing observed.

        Raises
        ------
        ValueError, TypeError
            If X does not have the columns of the training table, or cells that they cannot hold.

        Examples
        --------
        >>> from vaeimpute import VAEImputer
        >>> X = np.column_stack([np.arange(20.0), 2 * np.arange(20.0)])
        >>> usual, strange, empty = VAEImputer(random_state=0).fit(X).anomaly_score([[5, 10], [5, 40], [np.nan] * 2])
        >>> bool(usual < strange), float(empty)
        (True, 0.0)
        """
        _, values, observed = self._encoded(X)
        nll = -inference.log_evidence(self.ensemble_, *self._tensors(values, observed))
        return self.mask_calibration_.score(nll.double().cpu().numpy(), observed[:, self.modelled_])

    def cell_anomaly_score(self, X: Any) -> Any:
        """How strange each cell is, given the rest of its row.

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        table of shape (n, D)
            ``-log p(x_j | rest of the row)`` with the cell hidden, minus what an ordinary cell of its column scores,
            in nats; NaN where X has a hole. Container and index as X has them.

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
        log_density = inference.cell_log_density(self.ensemble_, *self._tensors(values, observed))
        scores = self._all_columns(-log_density)
        scores[:, self.modelled_] -= self.cell_surprise_
        return like(X, np.where(observed & self.modelled_, scores, np.nan))

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one ``.safetensors`` file with a JSON header; never pickle.

        Parameters
        ----------
        path : str or path-like
            Replaced only once the new file is complete. A `random_state` that is a generator is saved as None.

        Raises
        ------
        NotFittedError, OSError

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


def _calibrate(ensemble: inference.Ensemble, table: Table, seed: int) -> tuple[MaskCalibration, NDArray]:
    """Location and scale of row scores by mask, and the ordinary surprise of each column's cells."""
    rng = np.random.default_rng(seed)
    rows = torch.as_tensor(rng.permutation(len(table.values))[:_CALIBRATION_ROWS], device=table.values.device)
    values, observed = table.values[rows].to(ensemble.share), table.observed[rows]
    few = slice(0, max(20, min(_SURPRISE_ROWS, 20_000 // table.values.shape[1])))
    log_density = inference.cell_log_density(ensemble, values[few], observed[few])
    surprise = column_surprise(log_density.double().cpu().numpy(), observed[few].cpu().numpy())
    rate = rng.uniform(0, 0.8, (len(rows), 1)) * (rng.random((len(rows), 1)) < 0.75)
    kept = observed & torch.as_tensor(rng.random(observed.shape) >= rate).to(observed.device)
    nll = -inference.log_evidence(ensemble, values, kept)
    return MaskCalibration.fit(nll.double().cpu().numpy(), kept.cpu().numpy()), surprise


def _report_poor(columns: tuple[Column, ...], stacklevel: int) -> None:
    """Say which columns have too few values to learn from; refuse a table of nothing but holes."""
    empty = [column.name for column in columns if column.n_observed == 0]
    single = [column.name for column in columns if column.n_observed == 1]
    if len(empty) == len(columns):
        raise ValueError("X has no observed value in any column: there is nothing to learn from.")
    if empty:
        what = f"Columns without any observed value are not modelled: {empty}."
        warnings.warn(what, UserWarning, stacklevel=stacklevel)
    if single:
        what = f"Columns with a single observed value can only repeat it: {single}."
        warnings.warn(what, UserWarning, stacklevel=stacklevel)
