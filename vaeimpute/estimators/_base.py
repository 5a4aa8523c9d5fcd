"""What both estimators share: reading a table, fitting the core, scores, latents, saving and pickling."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import narwhals as nw
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from vaeimpute import inference, persistence
from vaeimpute.encoding import TableEncoder
from vaeimpute.fitting import Table, fit_table
from vaeimpute.schema import Kind
from vaeimpute.scoring import MaskCalibration, column_surprise
from vaeimpute.training import Plan

logger = logging.getLogger("vaeimpute")
_CALIBRATION_ROWS = 2000


class BaseVAE(BaseEstimator):
    """Shared methods; the constructor parameters belong to the estimators."""

    _parameter_constraints: dict = {
        "kinds": [dict, None],
        "missing_values": "no_validation",
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "dtype": [StrOptions({"float32", "float64"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": [Interval(Integral, 0, None, closed="left"), "boolean"],
    }

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "ensemble_")

    def _fit(self, X: Any) -> tuple[NDArray, NDArray]:
        """Fit encoder, ensemble and scores; returns the encoded table. Nothing is set unless all of it worked."""
        self._validate_params()
        device = _device(self.device)
        checked = clone(self)  # validate_data writes attributes before it finds a fault
        X = checked._validated(X, reset=True)
        encoder = TableEncoder.fit(X, kinds=self.kinds, missing_values=self.missing_values)
        values, observed = encoder.encode(X)
        present = observed.any(0)
        if not present.any():
            raise ValueError("X has no observed value in any column: there is nothing to learn from.")
        empty = [c.name for c, some in zip(encoder.schema.columns, present, strict=True) if not some]
        if empty:
            warnings.warn(f"Columns without any observed value are not modelled: {empty}.", UserWarning, stacklevel=3)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        columns = [c for c, some in zip(encoder.schema.columns, present, strict=True) if some]
        table = Table(
            torch.as_tensor(values[:, present], device=device),
            torch.as_tensor(observed[:, present], device=device),
            [str(c.kind) for c in columns],
            [c.n_levels for c in columns],
        )
        with _progress(self.verbose) as on_check:
            ensemble, history, interrupted = fit_table(
                table,
                seed=seed,
                dtype=getattr(torch, self.dtype),
                time_budget=self.time_budget,
                on_check=on_check,
            )
        if interrupted:
            warnings.warn("fit was interrupted: the best weights so far are kept.", UserWarning, stacklevel=3)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(checked, name):
                setattr(self, name, getattr(checked, name))
            elif hasattr(self, name):
                delattr(self, name)
        self.encoder_, self.ensemble_, self.history_ = encoder, ensemble, history
        self.n_iter_ = max(record["step"] for record in history)
        self.modelled_ = present
        self.seed_ = seed
        self.mask_calibration_, self.cell_surprise_ = self._calibrate(table, seed)
        return values, observed

    def _calibrate(self, table: Table, seed: int) -> tuple[MaskCalibration, NDArray]:
        """Location and scale of row scores by mask, and the ordinary surprise of each column's cells."""
        rng = np.random.default_rng(seed)
        rows = torch.as_tensor(rng.permutation(len(table.values))[:_CALIBRATION_ROWS], device=table.values.device)
        values, observed = table.values[rows].to(self.ensemble_.share), table.observed[rows]
        few = slice(0, max(20, 20_000 // table.values.shape[1]))
        log_density = inference.cell_log_density(self.ensemble_, values[few], observed[few])
        surprise = column_surprise(log_density.double().cpu().numpy(), observed[few].cpu().numpy())
        rate = torch.as_tensor(rng.uniform(0, 0.8, (len(rows), 1)) * (rng.random((len(rows), 1)) < 0.75))
        kept = observed & torch.as_tensor(rng.random(observed.shape) >= rate.numpy()).to(observed.device)
        nll = -inference.log_evidence(self.ensemble_, values, kept)
        return MaskCalibration.fit(nll.double().cpu().numpy(), kept.cpu().numpy()), surprise

    def _validated(self, X: Any, *, reset: bool) -> Any:
        """scikit-learn's own checks: names for frames; shape, dtype and size for arrays."""
        if is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False, accept_sparse=False)

    def _encoded(self, X: Any) -> tuple[Any, NDArray, NDArray]:
        """Checked X, its values and which of them are observed, (n, D)."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
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

        Notes
        -----
        ``logsumexp_k log w_k - log K`` (Burda et al. 2016, eq. 8), averaged as a density over the members.
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
        """Mean of `score_samples`: higher is better, so that a grid search needs no `scoring`."""
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
        """
        X, values, observed = self._encoded(X)
        log_density = inference.cell_log_density(self.ensemble_, *self._tensors(values, observed))
        scores = self._all_columns(-log_density)
        scores[:, self.modelled_] -= self.cell_surprise_
        return _like(X, np.where(observed & self.modelled_, scores, np.nan))

    def encode(self, X: Any) -> NDArray:
        """Latent means of the joint reading (its first member).

        Parameters
        ----------
        X : table of shape (n, D)

        Returns
        -------
        ndarray of shape (n, L)
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
        """
        check_is_fitted(self)
        Z = np.asarray(Z, dtype=float)
        n_latent = self.ensemble_.joint.n_latent
        if Z.ndim != 2 or Z.shape[1] != n_latent or not np.isfinite(Z).all():
            raise ValueError(f"Z must be a finite array of shape (n, {n_latent}), but its shape is {Z.shape}.")
        rows = inference.decode(self.ensemble_, torch.as_tensor(Z).to(self.ensemble_.share))
        return self.encoder_.build(self._all_columns(rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one ``.safetensors`` file with a JSON header; never pickle.

        Parameters
        ----------
        path : str or path-like
            Replaced only once the new file is complete.
        """
        check_is_fitted(self)
        tensors, header = self._to_state()
        header["params"] = _plain_params(self)
        persistence.save(path, tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """Read an estimator that `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or if it is truncated, of another version or not ours.
        """
        tensors, header = persistence.load(path)
        if header.get("class") != cls.__name__:
            raise ValueError(f"{os.fspath(path)!r} holds a {header.get('class')}, not a {cls.__name__}.")
        estimator = cls(**header["params"])
        estimator._from_state(tensors, header)
        return estimator

    def _to_state(self) -> tuple[dict[str, NDArray], dict]:
        tensors, header = inference.to_state(self.ensemble_)
        tensors |= {
            "location": self.mask_calibration_.location,
            "log_variance": self.mask_calibration_.log_variance,
            "cell_surprise": self.cell_surprise_,
            "modelled": self.modelled_,
        }
        names = getattr(self, "feature_names_in_", None)
        header |= {
            "class": type(self).__name__,
            "encoder": self.encoder_.to_json(),
            "history": self.history_,
            "n_iter": self.n_iter_,
            "seed": self.seed_,
            "n_features": self.n_features_in_,
            "feature_names": None if names is None else list(names),
        }
        return tensors, header

    def _from_state(self, tensors: dict[str, NDArray], header: dict) -> None:
        own = {"location", "log_variance", "cell_surprise", "modelled"}
        self.ensemble_ = inference.from_state(
            {key: value for key, value in tensors.items() if key not in own}, header, _device(self.device, or_cpu=True)
        )
        self.mask_calibration_ = MaskCalibration(tensors["location"], tensors["log_variance"])
        self.cell_surprise_, self.modelled_ = tensors["cell_surprise"], tensors["modelled"]
        self.encoder_ = TableEncoder.from_json(header["encoder"])
        self.history_, self.n_iter_, self.seed_ = header["history"], header["n_iter"], header["seed"]
        self.n_features_in_ = header["n_features"]
        if header["feature_names"] is not None:
            self.feature_names_in_ = np.asarray(header["feature_names"], dtype=object)

    def __getstate__(self) -> dict:
        """Weights as NumPy arrays, so that a model fitted on a GPU unpickles on a machine without one."""
        state = super().__getstate__().copy()
        if self.__sklearn_is_fitted__():
            tensors, header = self._to_state()
            state = {key: value for key, value in state.items() if not key.endswith("_")}
            state["_fitted"] = {"tensors": tensors, "header": json.dumps(header)}
            # what scikit-learn itself put there must survive as it is
            state |= {key: value for key, value in vars(self).items() if key.startswith("_sklearn")}
        return state

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        fitted = state.pop("_fitted", None)
        super().__setstate__(state)
        if fitted is not None:
            self._from_state(fitted["tensors"], json.loads(fitted["header"]))


def _device(device: str | torch.device, or_cpu: bool = False) -> torch.device:
    """The device by name; "auto" takes a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        if or_cpu:
            return torch.device("cpu")
        raise ValueError(f"device={str(device)!r}, but PyTorch finds no CUDA device here. Use device='auto'.")
    return chosen


@contextmanager
def seeded(random_state: Any, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators for a while; afterwards they are as before."""
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def is_frame(X: Any) -> bool:
    """Whether X is a DataFrame or table that narwhals knows."""
    return nw.dependencies.is_into_dataframe(X)


def _like(X: Any, array: NDArray) -> Any:
    """An array (n, D) of floats in the container of X, with its names and index."""
    if not is_frame(X):
        return array
    frame = nw.from_native(X, eager_only=True)
    columns = dict(zip(frame.columns, array.T, strict=True))
    scores = nw.from_dict(columns, backend=frame.implementation).to_native()
    return scores.set_axis(X.index, axis=0) if frame.implementation.is_pandas() else scores


def _plain_params(estimator: BaseEstimator) -> dict:
    """Constructor parameters that JSON can hold; a generator's state is not part of a model."""
    params = estimator.get_params(deep=False)
    params["device"] = str(params["device"])
    if not isinstance(params["random_state"], (int, type(None))):
        params["random_state"] = None
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in params.items()}


@contextmanager
def _progress(verbose: int) -> Iterator[Callable[[str, dict, Plan], None]]:
    """Show the checks of a fit: a rich progress bar where rich is installed, log lines otherwise, or nothing."""
    if not verbose:
        yield lambda reading, record, plan: None
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield lambda reading, record, plan: logger.info(
            "%s: step %d of %d, held-out error %.4f, %.1f s",
            reading,
            record["step"],
            plan.steps,
            record["error"],
            record["seconds"],
        )
        return
    with Progress() as bar:
        tasks: dict[str, Any] = {}

        def on_check(reading: str, record: dict, plan: Plan) -> None:
            if reading not in tasks:
                tasks[reading] = bar.add_task(reading, total=plan.steps)
            bar.update(
                tasks[reading], completed=record["step"], description=f"{reading}: error {record['error']:.4f}"
            )

        yield on_check
