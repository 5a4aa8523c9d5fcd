"""The wing of tables: data, models, defaults, fit, densities, picture."""

from vaeimpute.tables.data import Table
from vaeimpute.tables.density import fit_detector
from vaeimpute.tables.fit import fit_imputer
from vaeimpute.tables.plot import draw_rows

__all__ = ["Table", "draw_rows", "fit_detector", "fit_imputer"]
