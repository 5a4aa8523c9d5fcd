"""Frames as markdown tables."""

from __future__ import annotations

import numpy as np
import pandas as pd


def markdown(
    frame: pd.DataFrame, formats: dict[str, str] | None = None, default: str = ".2f", *, bold_smallest: bool = False
) -> str:
    """Markdown table of a frame; ``formats`` by column; the smallest number of each row in bold on request."""
    formats = formats or {}
    rows = [[frame.index.name or "", *map(str, frame.columns)], ["---"] * (1 + frame.shape[1])]
    for label, row in frame.iterrows():
        cells = [_cell(value, formats.get(name, default)) for name, value in row.items()]
        if bold_smallest and row.notna().any():
            best = int(np.nanargmin(row.to_numpy(dtype=float)))
            cells[best] = f"**{cells[best]}**"
        rows.append([str(label), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(value: object, spec: str) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else format(value, spec)
