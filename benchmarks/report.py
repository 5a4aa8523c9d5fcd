"""Turn result lines into the tables and pictures of ``benchmarks/README.md``.

    python -m benchmarks.report
    python -m benchmarks.report --results peers.jsonl --results mine.jsonl --readme elsewhere/README.md

Only what stands between the two markers of the README is replaced; pictures go to ``results/`` beside it.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd

from benchmarks import anomaly, images, m3, missingness, pooling, synthesis
from benchmarks.markdown import markdown
from benchmarks.pictures import CASE, by_case, draw_pictures, most_finished
from benchmarks.run import KEY, RESULTS, TASKS, read_lines
from benchmarks.scores import METRICS
from benchmarks.speed import speed_tables

OURS = "vaeimpute"

TEMPLATE = """# Benchmarks

    python -m benchmarks.run --suite quick
    python -m benchmarks.report

## Results

<!-- results:begin -->
No results yet.
<!-- results:end -->

## What was tried

Kept by hand: an idea, the tables it was tried on, what it did, and whether it stayed.

| idea | tables | effect | kept? |
|---|---|---|---|
"""


def read_results(files: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results, one row per case and method, and the lines that only ever failed.

    A later line replaces an earlier one, a result an error, and a line with draws one without. A result on other
    missing cells than most of its case's (another version of the table or of NumPy) counts as failed.
    """
    lines = [line for file in files for line in read_lines(file) if line.get("task") in TASKS]
    lines.sort(key=lambda line: "error" not in line)
    if not lines:
        return pd.DataFrame(), pd.DataFrame()
    frame = pd.DataFrame({tuple(line[name] for name in KEY): line for line in lines}.values())
    frame = frame.assign(error=frame.get("error"))
    if "mask" in frame:
        usual = frame.groupby(["task", "max_rows", *CASE])["mask"].transform(lambda masks: [*masks.mode(), None][0])
        other = frame["error"].isna() & (frame["mask"] != usual)
        frame.loc[other, "error"] = "saw other missing cells than the rest of its case"
    failed = frame["error"].notna()
    results, failures = frame[~failed].sort_values("draws", kind="stable"), frame[failed]
    if len(results):
        shape = results["rows"].astype(int).astype(str) + "×" + results["columns"].astype(int).astype(str)
        results = results.assign(table=results["table"] + " " + shape)
        results["realised_rate"] = results["hidden"] / (results["rows"] * results["columns"])
        results = results.drop_duplicates(["task", *CASE, "method"], keep="last")
    return results.reset_index(drop=True), failures


def summary(results: pd.DataFrame) -> str:
    """Per split: ranks, class error, seconds; each method's NRMSE over each other's; the share of columns won."""
    parts = []
    for split, part in results.groupby("split"):
        errors, classes = most_finished(by_case(part, "nrmse")), most_finished(by_case(part, "class_error"))
        cores = part.groupby("method")["cores"].agg(lambda cores: "/".join(map(str, sorted(set(map(int, cores))))))
        columns = {
            "mean rank, NRMSE": errors.rank(axis=1).mean(),
            "mean rank, MAE": by_case(part, "nmae").loc[errors.index, errors.columns].rank(axis=1).mean(),
            "mean rank, class error": classes.rank(axis=1).mean(),
            "mean class error": classes.mean(),
            "median seconds": by_case(part, "seconds")[list(errors)].median(),
        }
        overview = pd.DataFrame(columns).sort_values("mean rank, NRMSE")
        overview["cores"] = cores
        shown = list(errors.mean().loc[overview.index].index)
        parts += [
            f"### Summary, {split} tables\n",
            f"{headline(errors)}Ranks are over the {len(errors)} cases (class errors: {len(classes)}) that every "
            "method here finished; a method is here if it finished half of the cases.\n",
            f"Tables: {', '.join(sorted({index[0] for index in errors.index}))}.\n",
            markdown(overview, {"mean class error": ".3f", "median seconds": ".3g"}),
            "Geometric mean of NRMSE(row) / NRMSE(column); below 1 the row is better.\n",
            markdown(ratios(errors).loc[shown, shown], default=".3f"),
            "Share of columns won by the row from the column (numbers by NRMSE, classes by error; a tie is half).\n",
            markdown(columns_won(part, shown), default=".0%"),
        ]
    return "\n".join(parts)


def headline(errors: pd.DataFrame) -> str:
    """Say how vaeimpute stands beside the best single peer, by geometric-mean NRMSE."""
    if OURS not in errors or errors.shape[1] < 2 or errors.empty:
        return ""
    against = ratios(errors).loc[OURS].drop(OURS)
    return (
        f"**{OURS}: NRMSE {against.max() - 1:+.1%} against the best single peer ({against.idxmax()})**, "
        f"mean rank {errors.rank(axis=1).mean()[OURS]:.2f} of {errors.shape[1]}. "
    )


def ratios(errors: pd.DataFrame) -> pd.DataFrame:
    """Geometric mean over cases of each method's error divided by each other method's, from a (case, method) table."""
    logs = np.log(errors.where(errors > 0))
    return pd.DataFrame({peer: np.exp(logs.sub(logs[peer], axis=0).mean()) for peer in errors})


def columns_won(results: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Share of (case, column) pairs in which the row's error is below the column's, ties counted half."""
    cells = {}
    for line in results[results["method"].isin(methods)].to_dict("records"):
        for name, error in (line["nrmse_columns"] | line["class_error_columns"]).items():
            if error is not None:
                cells[(*(line[part] for part in CASE), name, line["method"])] = error
    errors = pd.Series(cells).unstack().reindex(columns=methods).dropna()
    won = {
        peer: errors.lt(errors[peer], axis=0).mean() + errors.eq(errors[peer], axis=0).mean() / 2 for peer in methods
    }
    table = pd.DataFrame(won).rename_axis(index="method")
    return table.mask(np.eye(len(table), dtype=bool))


def mechanisms(results: pd.DataFrame) -> str:
    """Geometric-mean NRMSE over the best peer of the case, by mechanism and rate."""
    logs = np.log(by_case(results, "nrmse").clip(lower=1e-6))
    peers = [method for method in logs if not method.startswith(OURS)]
    if not peers:
        return ""
    main = most_finished(logs)
    relative = np.exp(main.sub(main[[m for m in main if m in peers]].min(axis=1), axis=0))
    grid = np.exp(np.log(relative).groupby(["mechanism", "rate"]).mean())
    realised = results.groupby(["mechanism", "rate"])["realised_rate"].mean()
    grid.index = [f"{name.upper()} {rate:.0%} ({realised[name, rate]:.0%} realised)" for name, rate in grid.index]
    grid.index.name = "hidden"
    body = markdown(grid, default=".3f", bold_smallest=True)
    return f"### By mechanism and rate\n\nGeometric mean of NRMSE over that of the case's best peer.\n\n{body}"


def all_scores(results: pd.DataFrame) -> str:
    """Mean of every score that is one number, slower families included, over the cases that all have."""
    errors = most_finished(by_case(results, "nrmse"), 0.2)
    if errors.empty:
        return ""
    common = results[results["method"].isin(list(errors))].set_index(CASE).loc[errors.index]
    names = [name for name in METRICS if name in common and not common[name].map(lambda x: isinstance(x, dict)).any()]
    names += [name for name in ("seconds", "peak_mb") if name not in names]
    grid = common.astype(dict.fromkeys(names, float)).groupby("method")[names].mean().sort_values("nrmse")
    grid.insert(0, "mean rank", errors.rank(axis=1).mean())
    body = markdown(grid, {"mean rank": ".2f", "seconds": ".3g", "peak_mb": ".0f"}, default=".3f")
    return (
        f"### Every method and score\n\nMeans over the {len(errors)} cases that every method here finished.\n\n{body}"
    )


def out_of_sample(results: pd.DataFrame) -> str:
    """Errors on rows that were not fitted to."""
    errors = by_case(results, "nrmse").dropna()
    if errors.empty:
        return ""
    grid = pd.DataFrame(
        {
            "mean rank, NRMSE": errors.rank(axis=1).mean(),
            "NRMSE": errors.mean(),
            "class error": by_case(results, "class_error").mean(),
            "seconds": by_case(results, "seconds").median(),
        }
    ).sort_values("mean rank, NRMSE")
    saw = results.groupby("method")["transductive"].any()
    grid.index = [f"{method}{' (saw the new rows)' if saw[method] else ''}" for method in grid.index]
    grid.index.name = "method"
    text = f"Fitted to 70% of the rows, judged on the missing cells of the others; {len(errors)} cases."
    return f"### Out of sample\n\n{text}\n\n{markdown(grid, {'seconds': '.3g'}, default='.3f')}"


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
    """Coverage of the intervals at each level, their width, and CRPS, where draws were made; empty where none were."""
    if "coverage" not in results or results["coverage"].isna().all():
        return ""
    drawn = results.dropna(subset="coverage").reset_index(drop=True)
    levels = pd.DataFrame(drawn["coverage"].tolist()).add_prefix("inside ")
    widths = pd.DataFrame(drawn["width"].tolist()).add_prefix("width ")
    grid = pd.concat([drawn[["table", "method", "crps", "draw_seconds"]], levels, widths], axis=1)
    by_method = grid.drop(columns="table").groupby("method").mean()
    by_table = grid.drop(columns="draw_seconds").groupby(["table", "method"]).mean()
    by_table.index = pd.Index([f"{table}, {method}" for table, method in by_table.index], name="table, method")
    details = (
        f"<details><summary>Intervals of each table</summary>\n\n{markdown(by_table, default='.3f')}\n</details>\n"
    )
    text = "Share of hidden numbers inside their interval, by nominal level; width and CRPS in column sds."
    return f"### Intervals\n\n{text}\n\n{markdown(by_method, {'draw_seconds': '.3g'}, default='.3f')}\n{details}"


def speed(files: list[Path]) -> str:
    """Tables of the speed runs among the lines."""
    lines = [line for file in files for line in read_lines(file) if line.get("task") == "speed"]
    return "\n".join(f"### {title}\n\n{markdown(grid, default='.3g')}" for title, grid in speed_tables(lines).items())


def write_report(files: list[Path], readme: Path) -> str:
    """Replace the generated parts of the README (created where missing), draw the pictures, and return the results."""
    results, failures = read_results(files)
    parts = []
    if len(results):
        inside, outside = (results[results["task"] == task] for task in ("imputation", "out-of-sample"))
        if len(inside):
            pictures = draw_pictures(inside, readme.parent / "results")
            parts += [summary(inside)]
            parts += [f"![{file.stem.replace('_', ' ')}](results/{file.name})\n" for file in pictures]
            parts += [mechanisms(inside), all_scores(inside), coverage(inside)]
        parts += [out_of_sample(outside) if len(outside) else "", speed(files), tables(inside) if len(inside) else ""]
    else:
        parts = [speed(files) or "No results yet.\n"]
    if len(failures):
        listed = failures[["task", "table", "mechanism", "rate", "seed", "method", "error"]]
        lines = "\n".join(f"- {' '.join(map(str, row[:6]))}: {row[6]}" for row in listed.values)
        parts.append(f"### Failures\n\n{lines}")
    generated = "\n".join(part for part in parts if part).strip()
    page = _with_section(readme.read_text() if readme.exists() else TEMPLATE, "results", generated, readme)
    lines = [line for file in files for line in read_lines(file)]
    if "<!-- outliers:begin -->" in page and (own := [line for line in lines if "protocol" in line]):
        page = _with_section(page, "outliers", anomaly.report(own), readme)
    if "<!-- images:begin -->" in page and (own := [line for line in lines if line.get("task") in images.TASKS]):
        page = _with_section(page, "images", images.report(own), readme)
    if "<!-- m3:begin -->" in page and (own := [line for line in lines if line.get("task") == m3.TASK]):
        page = _with_section(page, "m3", m3.report(own), readme)
    if "<!-- pooling:begin -->" in page and (own := [line for line in lines if line.get("task") == pooling.TASK]):
        page = _with_section(page, "pooling", pooling.report(own), readme)
    if "<!-- missingness:begin -->" in page and (
        own := [line for line in lines if line.get("task") == missingness.TASK]
    ):
        page = _with_section(page, "missingness", missingness.report(own), readme)
    if "<!-- synthesis:begin -->" in page and (own := [line for line in lines if line.get("task") == synthesis.TASK]):
        page = _with_section(page, "synthesis", synthesis.report(own), readme)
    readme.parent.mkdir(parents=True, exist_ok=True)
    readme.write_text(page)
    return generated


def _with_section(page: str, name: str, text: str, readme: Path) -> str:
    """Page with `text` between the two markers of this name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"{readme} must hold the markers {begin} and {end}, once each and in this order.")
    return f"{page.split(begin)[0]}{begin}\n{text.strip()}\n{end}{page.split(end)[1]}"


@click.command()
@click.option(
    "--results",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file or a glob; repeatable. Default: benchmarks/results/*.jsonl.",
)
@click.option("--readme", type=click.Path(path_type=Path), default=RESULTS.parent / "README.md", show_default=False)
def main(results: tuple[Path, ...], readme: Path) -> None:
    """Write the tables and pictures of benchmarks/README.md from result files."""
    patterns = results or (RESULTS / "*.jsonl",)
    files = sorted({file for pattern in patterns for file in Path(pattern).parent.glob(Path(pattern).name)})
    click.echo(write_report(files, readme))


if __name__ == "__main__":
    main()
