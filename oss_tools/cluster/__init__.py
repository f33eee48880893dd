"""Work on many machines: parts of a run as tasks of Ray (https://docs.ray.io), which places them and does lost ones again."""
