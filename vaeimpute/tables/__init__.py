"""The wing of tables: data, models, defaults, fit, density."""
