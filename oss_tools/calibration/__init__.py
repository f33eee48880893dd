"""Runs a model over text, all tokens through one operation after another, and gathers what rounding wants to know of the inputs
of each weight."""
