"""Tools that a model may call: a calculator, Python without a network, and commands that a YAML file declares."""
