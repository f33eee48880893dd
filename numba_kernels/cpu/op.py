"""Operations: kernels compiled to C functions of one signature, so that a recorded list of them can be replayed.

A kernel is a function of integers (addresses, sizes) and floats whose last two parameters are `team` and `thread`. Every
thread of the team calls it; the threads share its work through `take`. A compile-time constant is a global of the
kernel's module in capitals that `bind` replaces.
"""

from __future__ import annotations

import hashlib
import inspect
import types as python_types
from collections.abc import Callable
from functools import cache, cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numba.core import types

from numba_kernels.simd import path
from numba_kernels.simd.memory import get_f32, get_i64

P = ParamSpec("P")
T = TypeVar("T")
SIGNATURE = types.void(types.int64, types.int64, types.int64)  # (arguments, team, thread)


@lru_cache
def _sources() -> str:
    """A digest of all code that kernels are made of: Numba's cache looks at one file only."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for file in sorted([*package.glob("simd/*.py"), *package.glob("cpu/*.py"), *package.glob("codec/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def specialize(function: Callable[..., Any], name: str, **constants: Any) -> Any:
    """A copy of a function whose module globals have other values, under a name that says so."""
    copy = python_types.FunctionType(function.__code__, {**function.__globals__, **constants}, name)
    copy.__qualname__ = f"{name}_{path()}_{_sources()}"  # Numba's cache tells functions of one line apart by this
    copy.__module__ = function.__module__
    return copy


def inner(function: Callable[..., Any], inline: str = "never") -> Any:
    """A function that kernels call: compiled into them, without a face for Python."""
    return numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, inline=inline)(function)


KERNEL: Any = None


def _entry(kinds: str) -> Callable[..., Any]:
    """The C function of a kernel with these kinds of arguments: a function of this file, so that Numba can cache it."""
    cells = [f"{'get_f32' if k == 'f' else 'get_i64'}(arguments + {8 * i})" for i, k in enumerate(kinds)]
    source = f"def entry(arguments, team, thread):\n    KERNEL({', '.join([*cells, 'team', 'thread'])})"
    scope: dict[str, Any] = {"get_f32": get_f32, "get_i64": get_i64, "__name__": __name__}
    exec(compile(source, __file__, "exec"), scope)
    return scope.pop("entry")


class Op:
    """A kernel under a name, with its constants bound. Compiled when its address is first asked for.

    Attributes:
        parameters: those that a record holds; `names` theirs, in order.
        made_by: the `maker` that made it: its module, name and arguments, and which of several it is.
    """

    made_by: tuple[str, str, tuple[Any, ...], int | None] | None = None

    def __init__(self, function: Callable[..., Any], **constants: Any) -> None:
        self.function = function
        self.constants = constants
        values = [str(v) for v in constants.values() if isinstance(v, (str, int))]
        self.name = "_".join([function.__name__, *values])
        *self.parameters, team, thread = inspect.signature(function).parameters.values()
        if (team.name, thread.name) != ("team", "thread"):
            raise TypeError(f"{self.name}: the last parameters of a kernel are team and thread")
        self.names = [p.name for p in self.parameters]
        self._floats = [p.annotation in (float, "float") for p in self.parameters]

    def bind(self, **constants: Any) -> Op:
        """The same kernel with other compile-time constants."""
        return Op(self.function, **{**self.constants, **constants})

    @cached_property
    def address(self) -> int:
        """The compiled C function; takes a second or so when it is not in the cache."""
        kernel = inner(specialize(self.function, self.name, **self.constants), inline="always")
        kinds = "".join("f" if is_float else "i" for is_float in self._floats)
        entry = specialize(_entry(kinds), self.name, KERNEL=kernel)
        self._compiled = numba.cfunc(SIGNATURE, cache=True, error_model="numpy")(entry)
        return self._compiled.address

    def cells(self, values: dict[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The arguments as int64 cells, and the arrays among them, which have to be kept alive."""
        if unknown := values.keys() ^ set(self.names):
            raise TypeError(f"{self.name}: parameters {', '.join(sorted(unknown))} are unknown or missing")
        cells = np.zeros(len(self.parameters), np.int64)
        kept = []
        for i, (name, is_float) in enumerate(zip(self.names, self._floats, strict=True)):
            cells[i] = to_cell(values[name], is_float)
            if isinstance(values[name], np.ndarray):
                kept.append(values[name])
        return cells, kept


def maker(function: Callable[P, T]) -> Callable[P, T]:
    """For functions that make operations of names, numbers and other operations: each is made once, and says how (`made_by`)."""
    signature, plain = inspect.signature(function), cast("Callable[..., Any]", function)

    @cache
    def made(*arguments: Any) -> Any:
        found = plain(*arguments)
        for number, op in enumerate(found) if isinstance(found, tuple) else [(None, found)]:
            if op not in arguments:
                op.made_by = (plain.__module__, plain.__name__, arguments, number)
        return found

    @wraps(function)
    def make(*given: P.args, **named: P.kwargs) -> T:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        return cast("T", made(*bound.args))

    return make


def to_cell(value: Any, is_float: bool = False) -> int:
    """An argument as the 64 bits of its cell: an array's address, a float's bits, None as 0."""
    if value is None:
        return 0
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if is_float:
        return int(np.float32(value).view(np.int32))
    return int(value)


def op(function: Callable[..., Any]) -> Op:
    """Makes an operation of a kernel function."""
    return Op(function)


__all__ = ["Op", "inner", "maker", "op", "specialize", "to_cell"]
