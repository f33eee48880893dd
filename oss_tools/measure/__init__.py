"""Measurements: what this machine is, how long things take, how much memory they need."""
