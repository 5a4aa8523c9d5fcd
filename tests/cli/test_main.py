"""The command line: files in and out, every refusal before the fit, and one true run of each command."""

import datetime
import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_wine

import vaeimpute
from vaeimpute.amputation import ampute
from vaeimpute.cli.main import main

CSV = """id,age,ok,city,weight
1,34,True,Oslo,1.5
2,,,Rome,0.1
3,51,False,,1e-12
4,20,True,Rome,
"""


class FakeEstimator:
    """Stands in for both estimators where the question is what the command line does around them."""

    encoder_ = SimpleNamespace(schema=SimpleNamespace(columns=()))
    made: list = []  # noqa: RUF012 (emptied by the fixture)

    def __init__(self, **params):
        self.params = params
        self.calls = []
        self.made.append(self)

    def fit(self, frame):
        self.dtypes = frame.dtypes
        return self

    def impute(self, frame, n_imputations=None, random_state=None):
        self.calls.append((n_imputations, random_state))
        filled = frame.apply(lambda column: column.fillna(column.dropna().iloc[0]))
        return filled if n_imputations is None else [filled] * n_imputations

    def anomaly_score(self, frame):
        return np.arange(len(frame), dtype=float)

    def cell_anomaly_score(self, frame):
        return np.where(frame.isna(), np.nan, np.arange(frame.size).reshape(frame.shape))

    def save(self, path):
        path.write_text("a model")

    @classmethod
    def load(cls, path):
        if path.read_text() != "a model":
            raise ValueError(f"Model file '{path}' is truncated.")
        return cls(loaded=path)


@pytest.fixture
def fake(monkeypatch):
    FakeEstimator.made = []
    for name in ("VAEImputer", "VAEOutlierDetector"):
        monkeypatch.setattr(vaeimpute, name, FakeEstimator, raising=False)
    return FakeEstimator


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text(CSV)
    return tmp_path


def run(command):
    return CliRunner().invoke(main, command.split())


def succeeds(command):
    result = run(command)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def refuses(command, message):
    """Exits with an error message, not with a traceback, and says what to look at."""
    result = run(command)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert re.search(message, " ".join(result.output.replace("│", " ").split())), result.output


def test_impute_changes_missing_cells_only(folder, fake):
    output = succeeds("impute in.csv -o out.csv")
    assert "Filled 4 of 20 cells: out.csv" in output
    want = CSV.replace("2,,,Rome", "2,34,True,Rome").replace("False,,", "False,Oslo,").replace("Rome,\n", "Rome,1.5\n")
    assert (folder / "out.csv").read_text() == want
    assert fake.made[0].params == {
        "effort": "auto",
        "time_budget": None,
        "max_iter": None,
        "random_state": 0,
        "verbose": 0,
    }


def test_iso_dates_in_csv_are_dates_and_stay_as_written(folder, fake):
    text = "day,time,code\n2024-02-29,2024-02-29 12:30:01,2024-02\n,,\n1999-12-31,1999-12-31 00:00:00,x\n"
    (folder / "dates.csv").write_text(text)
    succeeds("impute dates.csv -o out.csv")
    assert [dtype.kind for dtype in fake.made[0].dtypes] == ["M", "M", "O"]
    assert (folder / "out.csv").read_text() == text.replace("\n,,\n", "\n2024-02-29,2024-02-29 12:30:01,2024-02\n")


def test_a_column_with_missing_cells_has_the_dtype_of_one_without(folder, fake):
    succeeds("impute in.csv -o out.csv")
    (folder / "whole.csv").write_text((folder / "out.csv").read_text())
    succeeds("impute whole.csv -o again.csv")
    assert fake.made[0].dtypes.equals(fake.made[1].dtypes)


def test_options_reach_the_estimator(folder, fake):
    succeeds(
        "impute in.csv -o out.csv --seed 7 --effort full --time-budget 2.5 --max-iter 9 --verbose --n-imputations 2"
    )
    assert fake.made[0].params == {"effort": "full", "time_budget": 2.5, "max_iter": 9, "random_state": 7, "verbose": 1}
    assert fake.made[0].calls == [(2, 7)]


def test_draws_are_numbered_and_sort_by_name(folder, fake):
    succeeds("impute in.csv -o out.csv --n-imputations 10")
    names = sorted(path.name for path in folder.glob("out*"))
    assert names == [f"out_{i:02}.csv" for i in range(1, 11)]


def test_save_then_use_the_model(folder, fake):
    assert "Saved the model to m.safetensors" in succeeds("impute in.csv -o a.csv --save m.safetensors")
    succeeds("impute in.csv -o b.csv --model m.safetensors")
    assert fake.made[1].params == {"loaded": folder.joinpath("m.safetensors").relative_to(folder)}
    assert "Saved the model to d.safetensors" in succeeds("score in.csv -o c.csv --save d.safetensors")
    succeeds("score in.csv -o d.csv --model d.safetensors")


def test_present_cells_of_a_csv_stay_as_written(folder, fake):
    (folder / "in.csv").write_text('zip,price,id,x\n00501,1.50,,5.13e+00\n,2.25,9223372036854775809,\n"01001",,7,1\n')
    assert "Filled 4 of 12 cells" in succeeds("impute in.csv -o out.csv")
    assert [str(dtype) for dtype in fake.made[0].dtypes] == ["string", "Float64", "string", "Float64"]
    lines = (folder / "out.csv").read_text().splitlines()
    assert lines[1] == "00501,1.50,9223372036854775809,5.13e+00"
    assert lines[2:] == ["00501,2.25,9223372036854775809,5.13", "01001,1.5,7,1"]


def test_a_model_meets_its_own_types_in_other_files(folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=36)
    pd.DataFrame({"a": x, "b": x + 1, "ok": x > 0}).to_csv("in.csv", index=False)
    succeeds("impute in.csv -o first.csv --save m.safetensors --max-iter 50")
    (folder / "new.csv").write_text("a,b,ok\n,1.25,\n,0.25,\n")
    succeeds("impute new.csv -o empty.csv --model m.safetensors")
    filled = pd.read_csv("empty.csv")
    assert (filled["a"] % 1 != 0).all()
    assert filled["ok"].dtype == bool
    (folder / "whole.csv").write_text("a,b,ok\n1,,True\n2,,False\n,0.3,\n")
    succeeds("impute whole.csv -o whole_out.csv --model m.safetensors")
    assert pd.read_csv("whole_out.csv")["a"].iloc[2] % 1 != 0


def test_other_separators_are_named(folder):
    (folder / "in.csv").write_text("a;b\n1;2\n3;\n")
    assert "separated by ';'; want commas" in run("impute in.csv -o out.csv").output


def test_a_name_that_two_columns_have_is_refused(folder):
    (folder / "in.csv").write_text("a,b,a\n1,2,3\n3,,4\n")
    assert "several columns named 'a'. Rename them" in run("impute in.csv -o out.csv").output


def test_parquet_keeps_types_and_index(folder, fake):
    frame = pd.DataFrame(
        {
            "count": pd.array([1, None, 3], dtype="Int32"),
            "size": pd.Categorical(["S", None, "L"], ["S", "M", "L"], ordered=True),
            "when": pd.to_datetime(["2020-01-01 12:30", None, "2021-05-05 00:00"]),
            "length": [1.5, np.nan, 2.5],
            "name": ["a", None, "b"],
        },
        index=pd.Index([5, 6, 7], name="key"),
    )
    frame.to_parquet("in.parquet")
    succeeds("impute in.parquet -o out.parquet")
    got = pd.read_parquet("out.parquet")
    assert got.dtypes.equals(frame.dtypes)
    assert got.loc[[5, 7]].equals(frame.loc[[5, 7]])
    assert not got.isna().any(axis=None)


def test_parquet_types_that_plain_pandas_loses(folder, fake):
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.date(2024, 2, 29)
    table = pa.table({"n": [1, None, 3], "yes": [True, None, False], "day": pa.array([day, None, day], pa.date32())})
    pq.write_table(table, "in.parquet")
    succeeds("impute in.parquet -o out.parquet")
    assert pq.read_table("out.parquet").to_pydict() == {"n": [1, 1, 3], "yes": [True, True, False], "day": [day] * 3}
    assert pq.read_schema("out.parquet").equals(table.schema)


def test_score_rows_and_cells(folder, fake):
    output = succeeds("score in.csv -o rows.csv")
    assert "row 3: 3.00" in output
    assert pd.read_csv("rows.csv").equals(pd.DataFrame({"anomaly_score": np.arange(4.0)}))
    output = succeeds("score in.csv -o cells.csv --cells")
    assert "row 3, column 'city': 18.00" in output
    cells = pd.read_csv("cells.csv")
    assert list(cells.columns) == ["id", "age", "ok", "city", "weight"]
    assert cells.isna().to_numpy().tolist() == pd.read_csv("in.csv").isna().to_numpy().tolist()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("impute nowhere.csv -o out.csv", "'nowhere.csv' does not exist"),
        ("impute in.xlsx -o out.csv", "'in.xlsx' ends in '.xlsx', but tables are read and written as .csv or .parquet"),
        ("impute in.csv -o out.json", "'out.json' ends in '.json'"),
        ("impute in.csv", "Missing option '-o'"),
        ("impute in.csv -o in.csv", "'in.csv' exists. Choose another name, or pass --force"),
        ("impute in.csv -o out.csv --save in.csv", "'in.csv' exists"),
        ("impute in.csv -o no/out.csv", "the folder 'no' does not exist"),
        ("impute in.csv -o out.csv --model nowhere", "'nowhere' does not exist"),
        ("impute in.csv -o out.csv --model in.csv", "Model file 'in.csv' is truncated"),
        ("impute in.csv -o out.csv --model in.csv --save m", "give one of them"),
        ("impute in.csv -o out.csv --n-imputations 0", "0 is not in the range"),
        ("impute in.csv -o out.csv --time-budget 0", "is not in the range"),
        ("impute empty.csv -o out.csv", "Cannot read 'empty.csv': No columns"),
        ("impute ragged.csv -o out.csv", "Cannot read 'ragged.csv': .*Expected 2 fields in line 3, saw 3"),
        ("impute wide.csv -o out.csv", "Cannot read 'wide.csv': its rows have more fields than its header has names"),
        ("impute header.csv -o out.csv", "'header.csv' holds no table: 0 rows, 2 columns"),
        ("impute broken.parquet -o out.csv", "Cannot read 'broken.parquet'"),
        ("score in.csv -o in.csv", "'in.csv' exists"),
        ("score nowhere.csv -o out.csv", "does not exist"),
        ("score in.csv -o out.csv --model in.csv", "Model file 'in.csv' is truncated"),
        ("score in.csv -o out.csv --model in.csv --save m", "give one of them"),
    ],
)
def test_refusals_come_before_the_fit(folder, fake, command, message):
    (folder / "in.xlsx").touch()
    (folder / "empty.csv").touch()
    (folder / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    (folder / "wide.csv").write_text("a,b\n1,2,3\n")
    (folder / "header.csv").write_text("a,b\n")
    (folder / "broken.parquet").write_text("not parquet")
    refuses(command, message)
    assert fake.made == []
    assert not (folder / "out.csv").exists()
    assert (folder / "in.csv").read_text() == CSV


def test_force_replaces(folder, fake):
    (folder / "out.csv").write_text("old")
    succeeds("impute in.csv -o out.csv --force")
    assert "old" not in (folder / "out.csv").read_text()


def test_parquet_without_pyarrow_says_what_to_install(folder, fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses("impute in.csv -o out.parquet", re.escape("'out.parquet' needs pyarrow: pip install 'vaeimpute[io]'"))
    assert fake.made == []


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_without_source(folder, fake, monkeypatch):
    monkeypatch.setattr(fake, "fit", lambda self, frame: warnings.warn("Column 'x' is constant.", stacklevel=2) or self)
    assert "Warning: Column 'x' is constant.\n" in succeeds("impute in.csv -o out.csv").splitlines(keepends=True)


def test_true_run(folder):
    """Fit, save, load and score with the estimator itself."""
    table = load_wine(as_frame=True).frame.iloc[::2, :5].astype({"magnesium": int}).reset_index(drop=True)
    observed = ampute(table, rate=0.2, random_state=0)
    table.convert_dtypes().where(observed).to_csv("wine.csv", index=False)
    assert "Fitting 89 rows x 5 columns" in succeeds("impute wine.csv -o a.csv --save m.safetensors --max-iter 100")
    succeeds("impute wine.csv -o b.csv --model m.safetensors")
    filled = pd.read_csv("a.csv")
    assert filled.equals(pd.read_csv("b.csv"))
    assert filled.dtypes.equals(table.dtypes)
    assert filled.where(observed).equals(table.where(observed))
    succeeds("impute wine.csv -o c.csv --model m.safetensors --n-imputations 2")
    assert not pd.read_csv("c_1.csv").equals(pd.read_csv("c_2.csv"))
    succeeds("score wine.csv -o rows.parquet --save d.safetensors")
    succeeds("score wine.csv -o again.parquet --model d.safetensors")
    succeeds("score wine.csv -o imputer.parquet --model m.safetensors")  # the scores of both mean the same
    succeeds("score wine.csv -o cells.csv --model d.safetensors --cells")
    assert pd.read_parquet("rows.parquet").equals(pd.read_parquet("again.parquet"))
    for name in ("rows", "imputer"):
        assert (pd.read_parquet(f"{name}.parquet")["anomaly_score"] >= 0).all()
    assert (pd.read_csv("cells.csv").notna().to_numpy() == observed).all()


@pytest.mark.slow
def test_demo(folder):
    output = succeeds("demo --max-iter 200")
    error = {line.split()[0]: float(line.split()[-2]) for line in output.splitlines() if line.endswith("%")}
    assert error["vaeimpute"] < min(error["KNN"], error["column"])
    made = folder / "vaeimpute-demo"
    assert sorted(path.name for path in made.iterdir()) == ["filled.csv", "filled.png", "incomplete.csv"]
    assert not pd.read_csv(made / "filled.csv").isna().any(axis=None)


def test_demo_without_matplotlib(folder, fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert "No picture, because matplotlib is not installed" in succeeds("demo --out here")
    assert sorted(path.name for path in (folder / "here").iterdir()) == ["filled.csv", "incomplete.csv"]


def test_help_names_the_commands():
    assert {"demo", "impute", "score"} <= set(succeeds("--help").split())
    for command in ("demo", "impute", "score"):
        assert "--seed" in succeeds(f"{command} --help")
