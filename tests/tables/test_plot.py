"""The picture of anomalous rows: what stands in each cell, how dark it is, and what was expected."""

from __future__ import annotations

import numpy as np
import pytest

from vaeimpute.tables.plot import draw_rows

matplotlib = pytest.importorskip("matplotlib")

VALUE, EXPECTED = [[1.0, 2.0, 3.0], ["red", "blue", None]], [[9.0, 8.0, 7.0], ["green", "green", "green"]]
CELLS = np.array([[0.5, 8.0], [6.0, 0.1], [0.2, np.nan]])


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def texts(ax):
    return {(round(text.get_position()[0]), round(text.get_position()[1])): text for text in ax.texts}


def test_rows_stand_in_the_order_that_is_asked_for(ax):
    assert draw_rows(VALUE, EXPECTED, CELLS, np.array([2, 0]), ["a", "b"], ax) is not None
    (image,) = ax.get_images()
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), CELLS[[2, 0]])
    assert "3" in texts(ax)[0, 0].get_text()
    assert "1" in texts(ax)[0, 1].get_text()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "0"]


def test_outlying_cells_say_what_was_expected(ax):
    draw_rows(VALUE, EXPECTED, CELLS, np.array([0, 1]), ["a", "b"], ax)
    shown = {place: text.get_text() for place, text in texts(ax).items()}
    assert "green" in shown[1, 0]
    assert "8" in shown[0, 1]
    assert "9" not in shown[0, 0]
    assert "green" not in shown[1, 1]


def test_dark_cells_have_light_text(ax):
    draw_rows(VALUE, EXPECTED, CELLS, np.array([0]), ["a", "b"], ax)
    assert texts(ax)[1, 0].get_color() != texts(ax)[0, 0].get_color()
