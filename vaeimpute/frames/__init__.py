"""A user's frame <-> arrays: dtypes, schema, cells, codecs, encoder, containers. No torch."""
