"""A recorded program with what changes between its replays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oss_tools.engine.numba_cache import Passing, Pool
from oss_tools.engine.numba_recorder import Recorder
from oss_tools.engine.stream.replaying import Stops


class Replay:
    """A recorded program with the arguments that change between replays."""

    def __init__(self, recorder: Recorder, bases: Mapping[str, int]) -> None:
        """bases: of experts that stream, see `Stops`."""
        self.program = recorder.program
        self.stops = Stops(recorder.stops, recorder.program, bases)
        ops = self.program.ops
        cells = [(number, 1 + ops[number].names.index("rows"), each) for number, each in recorder.counts]
        self._numbers, self._cells, self._each = np.array(cells, np.int64).reshape(-1, 3).T
        self._attentions = [(number, ops[number].names, heads) for number, heads in recorder.attentions]
        tiles = [ops[number].constants.get("ROWS", 0) for number, _ in recorder.attentions]
        self.tile_rows = max(tiles, default=1)
        self._known: dict[str, Any] = {}

    def set_rows(self, rows: int) -> None:
        """How many tokens the next replay has."""
        if self._known.get("rows") != rows:
            self.program.table[self._numbers, self._cells] = rows * self._each
            self._known["rows"] = rows

    def set_attention(self, name: str, values: dict[int | None, int]) -> None:
        """An argument of the attention operations that have it, by the layers' window."""
        if self._known.get(name) != values:
            for number, names, heads in self._attentions:
                if name in names:
                    self.program.table[number, 1 + names.index(name)] = values[heads.window]
            self._known[name] = values

    def set_pages(self, places: dict[int | None, Pool | Passing]) -> None:
        """Where keys and values are stored and read, by the layers' window."""
        layout = [(id(place), place.version) for place in places.values()]
        if self._known.get("layout") == layout:
            return
        for number, names, heads in self._attentions:
            place = places[heads.window]
            arguments = {
                "pages": place.memory[heads.layer].ctypes.data, "tables": place.table.ctypes.data,
                "table_stride": place.table.strides[0], "ring": place.ring,
            }  # fmt: skip
            for name, value in arguments.items():
                self.program.table[number, 1 + names.index(name)] = value
        self._known["layout"] = layout
