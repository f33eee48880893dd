"""Rooms in which a new file is a new format, container, architecture or API."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def modules_of(package: str) -> tuple[ModuleType, ...]:
    """Every module of a package by name, imported once: what is defined in them is known from then on."""
    path = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
    return tuple(importlib.import_module(f"{package}.{name}") for name in names)
