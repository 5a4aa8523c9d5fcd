"""p(x | theta): one contract for cells and pixels."""
