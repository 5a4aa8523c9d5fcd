"""Dtypes: a user's dtype <-> text, and decoded cells -> a column of the user's dtype."""

import ast
import re
from decimal import Context, Decimal
from importlib import import_module
from typing import Any, TypeAlias

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = [
    "Series",
    "as_objects",
    "dtype_family",
    "dtype_text",
    "label",
    "listed",
    "make_series",
    "native_dtype",
    "overwritten",
    "revive",
    "widen",
]

# A column of an array, of a pandas frame, of any other frame: through narwhals, those of pandas would cost a row twice
Series: TypeAlias = NDArray | pd.Series | nw.Series

FAMILIES = {  # how the text of a dtype begins, in lower case; a column whose dtype begins otherwise is refused
    "integer": r"u?int\d+",
    "float": r"float|double|half|decimal",
    "boolean": r"bool",
    "time": r"date|timestamp|timedelta|duration",
    "categories": r"str(ing)?\b|large_string\b|categor|enum|dictionary",
    "object": r"object",
    "nothing": r"null",
}


def dtype_family(text: str) -> str | None:
    """The row of `FAMILIES` that a dtype belongs to."""
    text = text.removeprefix("ArrowDtype(").lower()
    return next((family for family, pattern in FAMILIES.items() if re.match(pattern, text)), None)


def dtype_text(dtype: Any) -> str:
    """A pandas, polars or pyarrow dtype as text, complete enough for `revive`."""
    match type(dtype).__name__:
        case "CategoricalDtype":
            labels = [label(category) for category in dtype.categories]
            index = str(dtype.categories.dtype) if labels == list(dtype.categories) else "str"
            return f"category(categories={labels!r}, dtype={index!r}, ordered={dtype.ordered!r})"
        case "StringDtype":
            return str(dtype) if dtype == "str" else f"string[{dtype.storage}]"
        case "ArrowDtype":
            return f"ArrowDtype({dtype.pyarrow_dtype})"
    return str(dtype)


def revive(text: str, container: str) -> Any:
    """The dtype that `dtype_text` wrote down."""
    if container == "pyarrow":
        return _arrow_type(text)
    if text.startswith("ArrowDtype("):
        return pd.ArrowDtype(_arrow_type(text[len("ArrowDtype(") : -1]))
    node = ast.parse(text, mode="eval").body if "(" in text else None
    literals = {word.arg or "": ast.literal_eval(word.value) for word in getattr(node, "keywords", ())}
    if container == "polars":
        dtype = getattr(import_module("polars"), text.split("(")[0])
        return dtype(**literals) if literals else dtype
    if text.startswith("category("):
        return pd.CategoricalDtype(pd.Index(literals["categories"], dtype=literals["dtype"]), literals["ordered"])
    return pd.api.types.pandas_dtype(text)


def _arrow_type(text: str) -> Any:
    pa = import_module("pyarrow")
    if found := re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", text):
        return pa.dictionary(_arrow_type(found[2]), _arrow_type(found[1]), ordered=found[3] == "1")
    if found := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", text):
        return pa.timestamp(found[1], found[2])
    if found := re.fullmatch(r"(decimal\d+)\((\d+), (-?\d+)\)", text):
        return getattr(pa, found[1])(int(found[2]), int(found[3]))
    return pa.type_for_alias(text)


def native_dtype(series: Series) -> Any:
    """The dtype object of the library that the series came from."""
    if not isinstance(series, nw.Series):
        return series.dtype
    native = series.to_native()
    return native.type if series.implementation.is_pyarrow() else native.dtype


def listed(series: Series) -> list:
    """The cells of a column as Python objects."""
    return series.to_list() if isinstance(series, nw.Series) else series.tolist()


def label(value: Any) -> Any:
    """A category as JSON can hold it: text, number or boolean; the text of anything else (an interval, say)."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str | int | float | bool) else str(value)


# --- cells -> a column of that dtype ----------------------------------------------------------------------------------


def make_series(values: NDArray | None, dtype: Any, container: str, n: int, *, integer: bool) -> Series:
    """A column of the given dtype from what `Codec.decode` gives; all missing if ``values`` is None."""
    data: Any = [None] * n if values is None else _as_family(values, dtype_text(dtype), integer=integer)
    if container == "numpy":
        return np.fromiter(data, dtype=object, count=n) if isinstance(data, list) else data.astype(dtype)
    if container == "polars":
        pl = import_module("polars")
        native = pl.Series(data, dtype=dtype) if isinstance(data, list) else pl.Series(data).cast(dtype)
    elif container == "pyarrow":
        native = import_module("pyarrow").chunked_array([_arrow_array(data, dtype)])
    elif isinstance(dtype, pd.ArrowDtype):
        return pd.Series(pd.array(_arrow_array(data, dtype.pyarrow_dtype), dtype=dtype))
    elif isinstance(dtype, pd.CategoricalDtype):
        code_of = {label(category): code for code, category in enumerate(dtype.categories)}
        return pd.Series(pd.Categorical.from_codes([code_of.get(category, -1) for category in data], dtype=dtype))
    elif isinstance(dtype, pd.DatetimeTZDtype):  # integers are UTC to astype
        return pd.Series(data).astype(dtype)
    else:
        return pd.Series(data, dtype=dtype)
    return nw.from_native(native, series_only=True)


def _as_family(values: NDArray, text: str, *, integer: bool) -> Any:
    """Decoded cells as the NumPy array, or list of objects, from which a column of that dtype is made."""
    family = dtype_family(text)
    if values.dtype.kind == "m":
        found = re.search(r"\b(ns|us|ms|s)\b", text)
        return values.astype(f"m8[{found[1] if found else 'D'}]").view(np.int64)
    if family in ("object", "categories"):
        return (values.astype(np.int64) if integer and values.dtype.kind == "f" else values).tolist()
    values = values.astype(np.float64)
    if family != "integer":
        return np.rint(values).astype(bool) if family == "boolean" else values
    found = re.search(r"u?int(8|16|32|64)", text.lower())
    limits = np.iinfo(found[0] if found else "int64")
    top = np.nextafter(float(limits.max), 0) if float(limits.max) > limits.max else float(limits.max)  # 2**63 is over
    return np.clip(np.rint(values), float(limits.min), top).astype(limits.dtype)


def _arrow_array(data: Any, dtype: Any) -> Any:
    pa = import_module("pyarrow")
    data = data.astype(np.int32) if pa.types.is_date32(dtype) and not isinstance(data, list) else data
    return pa.array(data, type=dtype) if isinstance(data, list) else pa.array(data).cast(dtype)


def overwritten(series: Any, new: Any, hidden: NDArray[np.bool_]) -> Series:
    """A column with the cells of ``new`` where it is ``hidden``; both are of one dtype and of length n."""
    if isinstance(series, nw.Series):
        return series.zip_with(nw.new_series("kept", ~hidden, nw.Boolean, backend=series.implementation), new)
    if isinstance(series, np.ndarray):
        return np.where(hidden, new, series)
    cells = series.array.copy()  # what `where` does, once it has aligned indexes
    cells[hidden] = new.array[hidden]
    return pd.Series(cells, dtype=series.dtype, copy=False)


def as_objects(decoded: NDArray, series: Series, hidden: NDArray[np.bool_]) -> NDArray:
    """Decoded cells as objects of the column's own types: decimals, and categories that are no text (times)."""
    present = np.fromiter(listed(series), dtype=object, count=len(series))[~hidden]
    if decoded.dtype == object:
        own = {label(cell): cell for cell in set(present)}
        return np.fromiter((own.get(category, category) for category in decoded), dtype=object, count=len(decoded))
    decimals = [cell for cell in present if isinstance(cell, Decimal)]
    if not decimals:
        return decoded
    finest, exact = Decimal(1).scaleb(min(int(cell.as_tuple().exponent) for cell in decimals)), Context(prec=999)
    cells = (Decimal(cell).quantize(finest, context=exact) for cell in decoded)
    return np.fromiter(cells, dtype=object, count=len(decoded))


def widen(series: Any, categories: NDArray) -> Series:
    """Add to a closed list of categories those that a hidden cell needs and this frame does not declare."""
    dtype = native_dtype(series)
    if not dtype_text(dtype).startswith(("category(", "Enum(")):
        return series
    known = set(map(label, dtype.categories))
    extra = [category for category in dict.fromkeys(categories.tolist()) if category not in known]
    if extra and isinstance(dtype, pd.CategoricalDtype):
        return series.cat.add_categories(extra)
    return series.cast(nw.Enum([*dtype.categories, *extra])) if extra else series
