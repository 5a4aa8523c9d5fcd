"""Small data of the benchmarks' tests, and how they call a command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner


def invoke(command, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def blobs(n: int, size: int = 8, channels: int | None = None, max_level: int = 16, seed: int = 0) -> np.ndarray:
    """Smooth images of one blob each."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(2, size - 3, (n, 2, 1, 1))
    y, x = np.mgrid[:size, :size]
    image = max_level * np.exp(-((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2) / 6)
    if channels:
        image = image[..., None] * np.linspace(1, 0.5, channels)
    return image.astype(np.uint8)


def stripes(n: int, seed: int = 0) -> np.ndarray:
    """Images of random columns: nothing like a blob."""
    return np.broadcast_to(np.random.default_rng(seed).integers(0, 17, (n, 1, 8)), (n, 8, 8)).astype(np.uint8)
