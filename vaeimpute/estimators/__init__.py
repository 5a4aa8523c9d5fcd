"""The estimators: scikit-learn's contract on top of the core."""

from vaeimpute.estimators._detector import VAEOutlierDetector
from vaeimpute.estimators._imputer import VAEImputer

__all__ = ["VAEImputer", "VAEOutlierDetector"]
