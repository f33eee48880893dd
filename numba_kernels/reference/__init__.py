"""Every kernel in a few lines of plain NumPy: the definition that it is tested against."""
