"""What the worker asks of tau2, over one small domain: a library that lends books. Plain classes stand for tau2's."""
