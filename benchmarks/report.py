"""Turn result lines into the tables and pictures of ``benchmarks/README.md``.

    python -m benchmarks.report
    python -m benchmarks.report --results /tmp/peers.jsonl --results /tmp/mine.jsonl --readme /tmp/report/README.md

Only what stands between the two markers of the README is replaced; pictures go to ``results/`` beside it.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd

from benchmarks.run import KEY, RESULTS, read_lines

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
CASE = ["table", "mechanism", "rate", "seed"]

TEMPLATE = f"""# Benchmarks

    python -m benchmarks.run --suite quick      # minutes; the tables that come with scikit-learn
    python -m benchmarks.run --suite issue      # hours; 32 tables
    python -m benchmarks.report                 # this page

`datasets.py` lists the tables, `peers.py` the methods, `run.py` the suites; a new table or method is one row there.
Four tables come with scikit-learn; the others are read from the folder `VAEIMPUTE_DATA`, or downloaded from OpenML.

**How to read it.** Cells of complete tables are hidden, completed, and compared with the truth; every method sees the
same holes. NRMSE is the error over all hidden numbers in units of their column's standard deviation (filling in the
mean scores about 1), class error the share of wrong classes among hidden class cells. *Tuning* tables were looked at
while the method was designed; only the *held-out* ones say what to expect of a new table. Seconds are those of the
cores given beside them.

## Results

{BEGIN}
No results yet.
{END}

## What was tried

Kept by hand: an idea, the tables it was tried on, what it did, and whether it stayed.

| idea | tables | effect | kept? |
|---|---|---|---|
"""


def read_results(files: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results, one row per case and method, and the lines that only ever failed.

    A later line replaces an earlier one, a result an error, and a line with draws one without.
    """
    lines = sorted((line for file in files for line in read_lines(file)), key=lambda line: "error" not in line)
    if not lines:
        return pd.DataFrame(), pd.DataFrame()
    frame = pd.DataFrame({tuple(line[name] for name in KEY): line for line in lines}.values())
    failed = frame["error"].notna() if "error" in frame else pd.Series(False, index=frame.index)
    results, failures = frame[~failed].sort_values("draws", kind="stable"), frame[failed]
    if len(results):
        shape = results["rows"].astype(int).astype(str) + "×" + results["columns"].astype(int).astype(str)
        results = results.assign(table=results["table"] + " " + shape).drop_duplicates([*CASE, "method"], keep="last")
    return results.reset_index(drop=True), failures


def summary(results: pd.DataFrame) -> str:
    """Per split: mean ranks, mean class error, seconds; then how each method's NRMSE compares with each other's."""
    parts = []
    for split, part in results.groupby("split"):
        errors, classes = _by_case(part, "nrmse"), _by_case(part, "class_error")
        columns = {
            "cases": errors.count(),
            "mean rank, NRMSE": errors.dropna().rank(axis=1).mean(),
            "mean rank, class error": classes.dropna().rank(axis=1).mean(),
            "mean class error": classes.dropna().mean(),
            "median seconds": _by_case(part, "seconds").median(),
            "cores": part.groupby("method")["cores"].agg(
                lambda cores: "/".join(map(str, sorted(set(map(int, cores)))))
            ),
        }
        overview = pd.DataFrame(columns).sort_values("mean rank, NRMSE")
        n = len(errors.dropna())
        parts += [
            f"### Summary, {split} tables\n",
            f"Ranks and mean class errors are over the {n} cases that every method finished (with hidden classes).\n",
            markdown(overview, {"mean class error": ".3f", "cases": ".0f"}),
            "Geometric mean of NRMSE(row) / NRMSE(column) over the cases both finished; below 1 the row is better.\n",
            markdown(ratios(errors).loc[overview.index, overview.index], default=".3f"),
        ]
    return "\n".join(parts)


def ratios(errors: pd.DataFrame) -> pd.DataFrame:
    """Geometric mean over cases of each method's error divided by each other method's, from a (case, method) table."""
    logs = np.log(errors.where(errors > 0))
    return pd.DataFrame({peer: np.exp(logs.sub(logs[peer], axis=0).mean()) for peer in errors})


def tables(results: pd.DataFrame) -> str:
    """NRMSE, class error and seconds of each table and method, one block per mechanism and rate; means over seeds."""
    parts = []
    for (mechanism, rate), part in results.groupby(["mechanism", "rate"]):
        parts.append(f"### {mechanism.upper()}, {rate:.0%} hidden\n")
        for metric, title, spec in [
            ("nrmse", "NRMSE", ".3f"),
            ("class_error", "Class error", ".3f"),
            ("seconds", "Seconds", ".3g"),
        ]:
            grid = part.pivot_table(index="table", columns="method", values=metric, aggfunc="mean")
            if len(grid):
                body = markdown(grid, default=spec, bold_smallest=metric != "seconds")
                parts.append(f"<details><summary>{title} of each table</summary>\n\n{body}\n</details>\n")
    return "\n".join(parts)


def coverage(results: pd.DataFrame) -> str:
    """Coverage and width of 90% intervals, and CRPS, where draws were made; empty where none were."""
    if "coverage90" not in results or results["coverage90"].isna().all():
        return ""
    drawn = results.dropna(subset="coverage90")
    grid = drawn.groupby(["table", "method"])[["coverage90", "width90", "crps", "draw_seconds"]].mean()
    grid.index = [f"{table}, {method}" for table, method in grid.index]
    grid.index.name = "table, method"
    return "### 90% intervals\n\n" + markdown(grid, {"draw_seconds": ".3g"}, default=".3f")


def markdown(
    frame: pd.DataFrame, formats: dict[str, str] | None = None, default: str = ".2f", bold_smallest: bool = False
) -> str:
    """A frame as a markdown table; ``formats`` by column; the smallest number of each row in bold on request."""
    formats = formats or {}
    rows = [[frame.index.name or "", *map(str, frame.columns)], ["---"] * (1 + frame.shape[1])]
    for label, row in frame.iterrows():
        cells = [_cell(value, formats.get(name, default)) for name, value in row.items()]
        if bold_smallest and row.notna().any():
            best = int(np.nanargmin(row.to_numpy(dtype=float)))
            cells[best] = f"**{cells[best]}**"
        rows.append([str(label), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(value, spec: str) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else format(value, spec)


def _by_case(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """(case, method) table of a metric; cases for which no method has it are left out."""
    return results.pivot(index=CASE, columns="method", values=metric).dropna(how="all").astype(float)


def draw_pictures(results: pd.DataFrame, folder: Path) -> list[Path]:
    """Accuracy against time, a heat map of NRMSE, and coverage where there are draws, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"accuracy_time": _accuracy_time, "heatmap": _heatmap, "coverage": _coverage_bars}
    written = []
    for name, draw in pictures.items():
        figure = draw(results)
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120, bbox_inches="tight", metadata={"Software": None})
    return written


def _accuracy_time(results: pd.DataFrame):
    from matplotlib.figure import Figure

    errors, seconds = _by_case(results, "nrmse").dropna(), _by_case(results, "seconds")
    if errors.empty:
        return None
    best = errors.div(errors.min(axis=1), axis=0)
    score, time = np.exp(np.log(best).mean()), np.exp(np.log(seconds.loc[errors.index].clip(lower=1e-3)).mean())
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for method in errors:
        axes.scatter(time[method], score[method], s=60, zorder=3)
        axes.annotate(method, (time[method], score[method]), xytext=(6, 5), textcoords="offset points")
    axes.margins(x=0.15, y=0.1)
    axes.set(xscale="log", xlabel="seconds per table (geometric mean)", ylabel="NRMSE / best of the case (geom. mean)")
    axes.set_title(f"Accuracy against time, {len(errors)} cases; lower left is better")
    axes.grid(alpha=0.3)
    return figure


def _heatmap(results: pd.DataFrame):
    from matplotlib.figure import Figure

    grid = results.pivot_table(index="table", columns="method", values="nrmse", aggfunc="mean")
    if grid.empty:
        return None
    grid = grid[grid.mean().sort_values().index]
    relative = np.log2(grid.div(grid.min(axis=1), axis=0))
    figure = Figure(figsize=(1.6 + 0.9 * grid.shape[1], 1.5 + 0.27 * len(grid)))
    axes = figure.subplots()
    axes.imshow(relative, cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(grid.shape[1]), grid.columns, rotation=45, ha="right")
    axes.set_yticks(range(len(grid)), grid.index)
    for (i, j), value in np.ndenumerate(grid.to_numpy()):
        if not np.isnan(value):
            shade = "white" if relative.iloc[i, j] > 0.7 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
    axes.set_title("NRMSE; pale = best of the table, dark = twice the best")
    return figure


def _coverage_bars(results: pd.DataFrame):
    from matplotlib.figure import Figure

    if "coverage90" not in results or results["coverage90"].isna().all():
        return None
    grid = results.pivot_table(index="table", columns="method", values="coverage90", aggfunc="mean")
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(grid) * grid.shape[1]))
    axes = figure.subplots()
    height = 0.8 / grid.shape[1]
    for j, method in enumerate(grid):
        axes.barh(np.arange(len(grid)) + j * height, grid[method], height=height, label=method)
    axes.axvline(0.9, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(np.arange(len(grid)) + 0.4 - height / 2, grid.index)
    axes.set(xlim=(0.5, 1.0), xlabel="share of hidden numbers inside their 90% interval")
    axes.invert_yaxis()
    axes.legend(loc="lower left")
    return figure


def write_report(files: list[Path], readme: Path) -> str:
    """Replace the generated part of the README (created where missing), draw the pictures, and return that part."""
    results, failures = read_results(files)
    parts = ["No results yet.\n"]
    if len(results):
        pictures = draw_pictures(results, readme.parent / "results")
        shown = [f"![{file.stem.replace('_', ' against ')}](results/{file.name})\n" for file in pictures]
        parts = [summary(results), *shown, coverage(results), tables(results)]
    if len(failures):
        listed = failures[["table", "mechanism", "rate", "seed", "method", "error"]]
        parts.append(
            "### Failures\n\n" + "\n".join(f"- {' '.join(map(str, row[:5]))}: {row[5]}" for row in listed.values)
        )
    generated = "\n".join(part for part in parts if part).strip()
    page = readme.read_text() if readme.exists() else TEMPLATE
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{readme} must hold the markers {BEGIN} and {END}, once each and in this order.")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    readme.parent.mkdir(parents=True, exist_ok=True)
    readme.write_text(f"{before}{BEGIN}\n{generated}\n{END}{after}")
    return generated


@click.command(help="Write the tables and pictures of benchmarks/README.md from result files.")
@click.option(
    "--results",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or a glob; repeatable. Default: benchmarks/results/*.jsonl.",
)
@click.option("--readme", type=click.Path(path_type=Path), default=RESULTS.parent / "README.md", show_default=False)
def main(results: tuple[Path, ...], readme: Path) -> None:
    patterns = results or (RESULTS / "*.jsonl",)
    files = sorted({file for pattern in patterns for file in Path(pattern).parent.glob(Path(pattern).name)})
    click.echo(write_report(files, readme))


if __name__ == "__main__":
    main()
