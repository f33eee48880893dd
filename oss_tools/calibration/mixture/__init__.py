"""The texts that a model is calibrated on unless the user gives others; README.md says where each is from."""
