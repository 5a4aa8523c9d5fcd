"""How unlikely is a row, or a cell: calibration, wrong cells, lattices."""
