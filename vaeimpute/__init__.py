"""Impute missing cells and flag anomalies in tables and images with masked variational autoencoders.

>>> from vaeimpute import VAEImputer
>>> VAEImputer().get_params()["dtype"]
'float32'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaeimpute.estimators import VAEImputer, VAEOutlierDetector
    from vaeimpute.outcomes import Outcome
    from vaeimpute.pooling import Comparison, Pooled, compare, fit_pooled, pool
    from vaeimpute.sensitivity_analysis import Sensitivity, sensitivity

__all__ = [
    "Comparison",
    "Outcome",
    "Pooled",
    "Sensitivity",
    "VAEImputer",
    "VAEOutlierDetector",
    "__version__",
    "compare",
    "fit_pooled",
    "pool",
    "sensitivity",
]
__version__ = "0.1.0"

_ROOMS = {
    "Outcome": "vaeimpute.outcomes",
    **dict.fromkeys(("VAEImputer", "VAEOutlierDetector"), "vaeimpute.estimators"),
    **dict.fromkeys(("Comparison", "Pooled", "compare", "fit_pooled", "pool"), "vaeimpute.pooling"),
    **dict.fromkeys(("Sensitivity", "sensitivity"), "vaeimpute.sensitivity_analysis"),
}


def __getattr__(name: str) -> Any:
    """Import the estimators, and with them torch, only when they are asked for: ``--help`` stays quick."""
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
