"""Sizes as people read them."""

from __future__ import annotations

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def format_size(nbytes: float) -> str:
    """Bytes in the decimal unit that suits them, with three digits: 13.8 GB, 120 kB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(nbytes) < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "B" or abs(nbytes) >= 99.95 else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.0f} PB" if abs(nbytes) >= 99.95 else f"{nbytes:.3g} PB"


def parse_size(text: str | int) -> int:
    """Bytes of a size such as 5GB, 16GiB, 1.5T or 4096. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(text), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as 5GB, 500MB or 16GiB")
    number, unit = match.groups()
    return round(float(number) * UNITS[(unit or "").lower()])
