"""The tables of the benchmarks: where each comes from, and one clean frame of it.

A source is a function without arguments that gives a DataFrame. Four tables come with scikit-learn; the others are read
as parquet from the folder named by the environment variable ``VAEIMPUTE_DATA``, or else downloaded from OpenML where we
know the table there. (OpenML may order or type columns differently: compare results only within one source.)

To add a table, add a row to ``TABLES``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets as bundled_datasets

Source = Callable[[], pd.DataFrame]

__all__ = ["TABLES", "Table", "codes", "hide", "load", "numeric_columns"]


@dataclass(frozen=True)
class Table:
    """A table of the benchmarks.

    ``split`` is "tuning" for tables that were looked at while the method was designed, "held-out" for the others: only
    the latter say what to expect of a new table. ``target`` is the column that a model would learn to predict, by
    default the last.
    """

    source: Source
    split: str
    max_rows: int = 5000
    target: str | None = None


def bundled(name: str, classes: tuple[str, ...] = ("target",), **options: object) -> Source:
    """Take a table that comes with scikit-learn and make the columns ``classes`` classes."""

    def read() -> pd.DataFrame:
        frame = getattr(bundled_datasets, f"load_{name}")(as_frame=True, **options).frame
        return frame.astype(dict.fromkeys(classes, "category"))

    return read


def parquet(path: str, openml: int | None = None) -> Source:
    """Read a file under ``$VAEIMPUTE_DATA``, or the table ``openml`` (a data_id) where there is no such file."""

    def read() -> pd.DataFrame:
        file = Path(os.environ.get("VAEIMPUTE_DATA", "")) / path
        if os.environ.get("VAEIMPUTE_DATA") and file.exists():
            return pd.read_parquet(file)
        if openml is None:
            raise FileNotFoundError(
                f"{path} is neither bundled nor on OpenML: set VAEIMPUTE_DATA to a folder that holds it "
                f"(it is {os.environ.get('VAEIMPUTE_DATA')!r})."
            )
        return bundled_datasets.fetch_openml(data_id=openml, as_frame=True, parser="auto").frame

    return read


TABLES: dict[str, Table] = {
    "abalone": Table(parquet("tabular/abalone.parquet", 183), "tuning"),
    "adult": Table(parquet("tabular/adult.parquet", 1590), "tuning", max_rows=2000),
    "airfoil": Table(parquet("tabular/airfoil.parquet"), "tuning"),
    "ames": Table(parquet("tabular/ames.parquet"), "held-out", max_rows=2000),
    "banknote": Table(parquet("tabular/banknote.parquet", 1462), "held-out"),
    "blood_transfusion": Table(parquet("tabular/blood_transfusion.parquet", 1464), "held-out"),
    "breast_cancer_wdbc": Table(bundled("breast_cancer"), "tuning"),
    "california_housing": Table(parquet("tabular/california_housing.parquet"), "tuning"),
    "car": Table(parquet("tabular/car.parquet", 40975), "held-out"),
    "concrete": Table(parquet("tabular/concrete.parquet", 4353), "tuning"),
    "concrete_slump": Table(parquet("tabular/concrete_slump.parquet"), "held-out"),
    "covertype_sample": Table(parquet("tabular/covertype_sample.parquet"), "held-out"),
    "credit_approval": Table(parquet("natural/credit_approval.parquet", 29), "held-out"),
    "credit_default": Table(parquet("tabular/credit_default.parquet", 42477), "held-out"),
    "dermatology": Table(parquet("natural/dermatology.parquet", 35), "held-out"),
    "diabetes_lars": Table(bundled("diabetes", classes=("sex",), scaled=False), "tuning"),
    "energy_efficiency": Table(parquet("tabular/energy_efficiency.parquet", 1472), "tuning"),
    "german_credit": Table(parquet("tabular/german_credit.parquet", 31), "tuning"),
    "glass": Table(parquet("tabular/glass.parquet", 41), "tuning"),
    "haberman": Table(parquet("tabular/haberman.parquet", 43), "held-out"),
    "heart_cleveland": Table(parquet("natural/heart_cleveland.parquet", 49), "held-out"),
    "ionosphere": Table(parquet("tabular/ionosphere.parquet", 59), "tuning"),
    "iris": Table(bundled("iris"), "held-out"),
    "kin8nm": Table(parquet("tabular/kin8nm.parquet", 189), "held-out"),
    "letter": Table(parquet("tabular/letter.parquet", 6), "tuning"),
    "magic_gamma": Table(parquet("tabular/magic_gamma.parquet", 1120), "held-out"),
    "maternal_health_risk": Table(parquet("tabular/maternal_health_risk.parquet"), "tuning"),
    "news_reduced": Table(parquet("tabular/news_reduced.parquet"), "held-out", max_rows=2000),
    "obesity_levels": Table(parquet("tabular/obesity_levels.parquet"), "held-out"),
    "oil_spill": Table(parquet("tabular/oil_spill.parquet", 311), "held-out"),
    "pendigits": Table(parquet("tabular/pendigits.parquet", 32), "tuning"),
    "penguins": Table(parquet("tabular/penguins.parquet", 42585), "tuning", target="species"),
    "planning_relax": Table(parquet("tabular/planning_relax.parquet", 1490), "held-out"),
    "power_plant_ccpp": Table(parquet("tabular/power_plant_ccpp.parquet"), "held-out"),
    "protein_tertiary": Table(parquet("tabular/protein_tertiary.parquet"), "held-out"),
    "raisin": Table(parquet("tabular/raisin.parquet"), "held-out"),
    "seeds": Table(parquet("tabular/seeds.parquet", 1499), "tuning"),
    "shoppers": Table(parquet("tabular/shoppers.parquet", 45060), "tuning"),
    "spambase": Table(parquet("tabular/spambase.parquet", 44), "held-out", max_rows=2000),
    "travel_reviews": Table(parquet("tabular/travel_reviews.parquet"), "held-out"),
    "vehicle": Table(parquet("tabular/vehicle.parquet", 54), "tuning"),
    "vowel": Table(parquet("tabular/vowel.parquet", 307), "tuning"),
    "waveform5000": Table(parquet("tabular/waveform5000.parquet", 60), "held-out", max_rows=2000),
    "wine_recognition": Table(bundled("wine"), "tuning"),
    "wine_white": Table(parquet("tabular/wine_white.parquet", 40498), "tuning"),
    "yeast": Table(parquet("tabular/yeast.parquet", 181), "tuning"),
}


def load(name: str, max_rows: int | None = None) -> pd.DataFrame:
    """Give a complete table: numbers as float64, everything else as category.

    Incomplete rows and constant columns are dropped; of more than ``max_rows`` rows (the table's own limit by default)
    a random choice is kept, the same in every run.
    """
    if name not in TABLES:
        raise ValueError(f"Unknown table {name!r}; known: {sorted(TABLES)}.")
    frame = _complete(name)
    limit = TABLES[name].max_rows if max_rows is None else max_rows
    if len(frame) > limit:
        kept = np.random.default_rng(0).choice(len(frame), size=limit, replace=False)
        frame = _typed(frame.iloc[np.sort(kept)])
    return frame.reset_index(drop=True)


def numeric_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns that hold numbers; all others are class columns."""
    return [name for name in frame if not isinstance(frame[name].dtype, pd.CategoricalDtype)]


def codes(frame: pd.DataFrame) -> np.ndarray:
    """Float array (n, D) of a frame from `load`, complete or not: classes as codes, missing cells as NaN."""
    numbers = set(numeric_columns(frame))
    columns = [frame[name] if name in numbers else frame[name].cat.codes.replace(-1, np.nan) for name in frame]
    return np.column_stack([column.to_numpy(dtype=float) for column in columns])


def hide(frame: pd.DataFrame, observed: np.ndarray) -> pd.DataFrame:
    """Put NaN wherever ``observed`` (n, D) is False; the categories of class columns stay declared."""
    return frame.where(observed)


@lru_cache(maxsize=64)
def _complete(name: str) -> pd.DataFrame:
    frame = TABLES[name].source()
    frame.columns = frame.columns.astype(str)
    return _typed(frame.dropna())


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for name, column in frame.items():
        is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        if column.nunique() > 1:
            columns[name] = column.astype(float) if is_number else _category(column)
    return pd.DataFrame(columns, index=frame.index)


def _category(column: pd.Series) -> pd.Series:
    """Classes that occur, as strings; the order of an ordered column is kept."""
    column = column.astype("category").cat.remove_unused_categories()
    return column.cat.rename_categories([str(category) for category in column.cat.categories])
