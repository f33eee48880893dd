"""SciPy's distributions, and the level of all intervals."""

from __future__ import annotations

from oss_tools.errors import MissingPackage, how_to_install

try:
    from scipy import optimize, stats
except ImportError:
    raise MissingPackage(f"the statistics of comparisons need scipy: {how_to_install('eval')}") from None

LEVEL = 0.95
Z = float(stats.norm.ppf(0.5 + LEVEL / 2))

__all__ = ["LEVEL", "Z", "optimize", "stats"]
