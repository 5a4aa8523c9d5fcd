"""Reproducible comparisons of vaeimpute with what people use today: ``python -m benchmarks.run``, then ``.report``."""
