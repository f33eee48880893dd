"""How an operation is made, in words that another process can be told: so that several can compile."""

from __future__ import annotations

import importlib
from typing import Any

from numba_kernels.cpu.op import Op

Recipe = list[Any]  # module, name, arguments or None, number in a tuple or None: what JSON keeps


def recipe_of(op: Op) -> Recipe | None:
    """How to make an operation anew: a name in its module, or a call of a `maker` there. None if that cannot be said."""
    if op.made_by:
        module, name, arguments, number = op.made_by
        told = [_told(argument) for argument in arguments]
        return None if None in told else [module, name, told, number]
    module = op.function.__module__
    names = [name for name, value in vars(importlib.import_module(module)).items() if value is op]
    return [module, names[0], None, None] if names else None


def op_of(recipe: Recipe) -> Op:
    """The operation of a recipe."""
    module, name, arguments, number = recipe
    found = getattr(importlib.import_module(module), name)
    if arguments is not None:
        found = found(*(op_of(value) if kind == "op" else value for kind, value in arguments))
    op: Op = found if number is None else found[number]
    return op


def _told(argument: Any) -> list[Any] | None:
    if isinstance(argument, Op):
        recipe = recipe_of(argument)
        return ["op", recipe] if recipe else None
    return ["plain", argument] if argument is None or isinstance(argument, (str, int)) else None
