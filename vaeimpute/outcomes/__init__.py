"""The analysis that completed tables are for: its outcome's model, and draws compatible with it. No torch."""

from vaeimpute.outcomes.outcome import Outcome

__all__ = ["Outcome"]
