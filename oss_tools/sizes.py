"""Sizes as people read them."""

from __future__ import annotations


def format_size(nbytes: float) -> str:
    """Bytes in the decimal unit that suits them, with three digits: 13.8 GB, 120 kB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(nbytes) < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" or abs(nbytes) >= 99.95 else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.0f} PB" if abs(nbytes) >= 99.95 else f"{nbytes:.3g} PB"
