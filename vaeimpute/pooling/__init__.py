"""One answer from many completed tables, with the doubt that missing cells leave."""

from vaeimpute.pooling.models import compare, fit_pooled
from vaeimpute.pooling.rules import Comparison, Pooled, pool

__all__ = ["Comparison", "Pooled", "compare", "fit_pooled", "pool"]
