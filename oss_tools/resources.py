"""Finds the data that travels with the program: recipes, model shapes, evaluation tasks."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource(relative: str) -> Path:
    """The path of a data file or folder, e.g. `configs/recipes`; inside the wheel or in the checkout's top level."""
    installed = _PACKAGE / relative
    return installed if installed.exists() else _PACKAGE.parent / relative
