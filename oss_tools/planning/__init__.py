"""Which tensor in which format: how much each one's rounding moves the output, and the best mixture under a budget."""
