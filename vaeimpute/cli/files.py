"""CSV and Parquet files <-> pandas frames: present cells come back as they stand in the file."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

# pandas is imported inside the functions that need it, so that --help answers at once.
if TYPE_CHECKING:
    import pandas as pd

    from vaeimpute.frames.schema import Column

EXTENSIONS = (".csv", ".parquet")


def check_writable(paths: list[Path], *, force: bool) -> None:
    """Complain before the fit rather than after it."""
    for path in paths:
        if path.exists() and not force:
            raise click.ClickException(f"'{path}' exists. Choose another name, or pass --force to replace it.")
        if not path.parent.is_dir():
            raise click.ClickException(f"Cannot write '{path}': the folder '{path.parent}' does not exist.")
        _require_pyarrow(path)


def read(path: Path) -> pd.DataFrame:
    """A table as pandas reads it best: nullable types, ISO dates as dates, numbers with leading zeros as text."""
    import pandas as pd

    _require_pyarrow(path)
    try:
        if path.suffix.lower() == ".csv":
            # The nullable types keep a column with missing cells an integer or a boolean one, so that 3 is not written
            # as 3.0, and a saved model meets the same dtypes in the next file, whichever of its columns lack cells.
            frame = pd.read_csv(path, dtype_backend="numpy_nullable")
            text = text_of(path)
            if frame.shape == text.shape:
                for name in frame.select_dtypes("number"):
                    if text[name].str.fullmatch(r"\s*[+-]?0\d+\s*").any():  # no number: a zip code, an identifier
                        frame[name] = text[name].where(frame[name].notna()).astype("string")
                for name in frame.select_dtypes("string"):  # '' beside integers that are too large for pandas
                    frame[name] = frame[name].mask(frame[name] == "")
            frame = _with_dates(frame)
        else:
            frame = _read_parquet(path)
    except ValueError as error:  # what pandas and pyarrow raise for a broken file
        raise click.ClickException(f"Cannot read '{path}': {str(error).strip()}") from error
    if path.suffix.lower() == ".csv":
        _refuse_odd(path, frame)
    if frame.empty:
        raise click.ClickException(f"'{path}' holds no table: {len(frame)} rows, {frame.shape[1]} columns.")
    return frame


def text_of(path: Path | StringIO) -> pd.DataFrame:
    """A CSV file's cells as they are written; '' where there is nothing."""
    import pandas as pd

    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _refuse_odd(path: Path, frame: pd.DataFrame) -> None:
    """Complain of a CSV file whose header pandas makes fit by itself, or does not understand."""
    import pandas as pd

    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first fields as an index
        raise click.ClickException(f"Cannot read '{path}': its rows have more fields than its header has names.")
    if frame.shape[1] == 1 and (found := set(frame.columns[0]) & set(";\t|")):
        raise click.ClickException(f"'{path}' seems to be separated by {found.pop()!r}; want commas. Convert it first.")
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    if (twice := header[header.duplicated() & (header != "")]).any():  # pandas renames them
        raise click.ClickException(f"'{path}' has several columns named {twice.iloc[0]!r}. Rename them.")


def like_model(frame: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """Columns that were read as another type than in the model's own file, as all empty or all whole ones may be."""
    import pandas as pd

    frame = frame.copy()
    for column in columns:
        read = frame.dtypes.get(column.name)
        if read is None or str(read) == column.dtype or "(" in column.dtype:
            continue
        if frame[column.name].isna().all() or (pd.api.types.is_integer_dtype(read) and column.dtype == "Float64"):
            frame[column.name] = frame[column.name].astype(column.dtype)
    return frame


def _with_dates(frame: pd.DataFrame) -> pd.DataFrame:
    """Text columns that hold only ISO dates, or dates with times, as datetimes; they are written the same way."""
    import pandas as pd

    for name in frame.select_dtypes("string"):
        for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S"):
            times = pd.to_datetime(frame[name], format=form, errors="coerce")
            if times.notna().equals(frame[name].notna()):
                frame[name] = times
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    frame = pd.read_parquet(path)
    # With plain dtypes, integers with missing cells would be floats, and such dates and booleans objects.
    exact = pd.read_parquet(path, dtype_backend="pyarrow")
    for name, dtype in frame.dtypes.items():
        if pd.api.types.is_object_dtype(dtype) or (dtype.kind == "f" and exact[name].dtype.kind in "iu"):
            frame[name] = exact[name]
    return frame


def write(frame: pd.DataFrame, path: Path, present: pd.DataFrame | None = None) -> None:
    """`present`: text of the cells that a CSV file gets as they stood in the one that was filled; null elsewhere."""
    if path.suffix.lower() != ".csv":
        frame.to_parquet(path)
        return
    if present is not None:
        frame = present.where(present.notna(), text_of(StringIO(frame.to_csv(index=False))))
    frame.to_csv(path, index=False)


def _require_pyarrow(path: Path) -> None:
    if path.suffix.lower() != ".parquet":
        return
    try:
        import pyarrow  # noqa: F401 (pandas uses it)
    except ImportError as error:
        raise click.ClickException(f"'{path}' needs pyarrow: pip install 'vaeimpute[io]'") from error
