"""Impute missing cells and flag anomalies in tables and images with masked variational autoencoders.

>>> from vaeimpute import VAEImputer
>>> VAEImputer().get_params()["dtype"]
'float32'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaeimpute.estimators import VAEImputer, VAEOutlierDetector

__all__ = ["VAEImputer", "VAEOutlierDetector", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the estimators, and with them torch, only when they are asked for: ``--help`` stays quick."""
    if name in ("VAEImputer", "VAEOutlierDetector"):
        return getattr(import_module("vaeimpute.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
