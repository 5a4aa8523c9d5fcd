"""Closed-form Gaussian models of incomplete data."""
