"""CUDA graphs of work that is put on the device again and again: all its launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba_kernels.cuda.device import Device

GRAPHED, PASSES = 64, 64  # tokens of a pass that is worth a graph, and graphs of passes that are kept


class Graphs:
    """The graphs of a model, which hold for as long as the memory lies where it lay when they were recorded."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._named: dict[str, Any] = {}
        self._passes: dict[tuple[Any, ...], Any] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def named(self, name: str, work: Callable[[], None]) -> Any:
        """The graph of this name. It is recorded when it is first asked for, which carries the work out."""
        if name not in self._named:
            self._named[name] = self._device.graph(work)
        return self._named[name]

    def play(self, launches: tuple[Any, ...], tokens: int, work: Callable[[], None]) -> None:
        """A pass over so many tokens, whose launches are the same whenever `launches` is: few tokens leave the device waiting for
        launches, so the second time they are recorded, and from then on they are one."""
        if tokens > GRAPHED:
            work()
        elif graph := self._passes.get(launches):
            graph.replay()
        elif launches in self._seen:
            self._passes[launches] = self._device.graph(work)  # which carries it out
            if len(self._passes) > PASSES:
                del self._passes[next(iter(self._passes))]
        else:
            self._seen.add(launches)
            work()

    def clear(self) -> None:
        """Drops what was recorded."""
        self._named.clear()
        self._passes.clear()
        self._seen.clear()
