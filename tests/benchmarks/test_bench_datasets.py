"""benchmarks.datasets: clean frames, the same in every run, wherever they come from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.datasets import TABLES, codes, hide, load, numeric_columns
from vaeimpute.amputation import ampute

BUNDLED = ["breast_cancer_wdbc", "diabetes_lars", "iris", "wine_recognition"]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tables(name):
    frame = load(name)
    assert not frame.isna().any().any()
    assert (frame.nunique() > 1).all()
    assert all(dtype.kind == "f" or isinstance(dtype, pd.CategoricalDtype) for dtype in frame.dtypes)
    pd.testing.assert_frame_equal(frame, load(name))


def test_cleaning_and_subsampling(toy):
    frame = load(toy)
    assert list(frame) == ["x", "y", "n", "colour", "flag"]
    assert numeric_columns(frame) == ["x", "y", "n"]
    assert len(frame) == 59
    few = load(toy, max_rows=20)
    assert len(few) == 20
    pd.testing.assert_frame_equal(few, load(toy, max_rows=20))
    assert len(few.merge(frame)) == 20


def test_unknown_table_and_missing_folder(monkeypatch):
    with pytest.raises(ValueError, match="Unknown table 'nope'"):
        load("nope")
    monkeypatch.delenv("VAEIMPUTE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set VAEIMPUTE_DATA"):
        TABLES["airfoil"].source()


def test_parquet_tables_come_from_the_folder(monkeypatch, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "tabular").mkdir()
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    frame.to_parquet(tmp_path / "tabular" / "concrete.parquet")
    monkeypatch.setenv("VAEIMPUTE_DATA", str(tmp_path))
    pd.testing.assert_frame_equal(TABLES["concrete"].source(), frame)


def test_codes_and_hide_keep_categories(toy):
    frame = load(toy)
    table = codes(frame)
    observed = ampute(table, 0.4, random_state=0)
    incomplete = hide(frame, observed)
    assert (incomplete.dtypes == frame.dtypes).all()
    np.testing.assert_array_equal(np.isnan(codes(incomplete)), ~observed)
    np.testing.assert_array_equal(codes(incomplete)[observed], table[observed])
