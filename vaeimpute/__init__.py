"""Fill holes and flag strange values in tables with masked variational autoencoders."""
