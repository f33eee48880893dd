"""Work on many machines: parts of a run as tasks of Ray (https://docs.ray.io), which alone knows how they are placed and retried."""
