"""What differs from pass to pass on a GPU: tokens, positions, the pages of sequences.

Launches read it from arrays on the device, so that a recorded pass can be replayed on other tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.attention_many import tile_tokens
from numba_kernels.cuda.device import Device
from oss_tools.engine.backend import Run
from oss_tools.engine.cuda_cache import Cache, Pool

CHUNK = 2048  # tokens in one pass
OUTPUTS = 64  # rows of logits in one call
SEQUENCES = 64  # in one pass
POSITION, SEED, TOKEN, TABLES = 0, 1, 4, 8  # places in `Step.numbers`


class Numbers:
    """int32 that change from pass to pass: pinned memory of the host, and the device's copy."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.host = device.pinned(size, np.int32)
        self.host[:] = 0
        self.numbers = device.zeros(size, np.int32)
        self._under_way = device.event()

    def wait(self) -> None:
        """Until the host's memory may be changed again."""
        self._under_way.synchronize()

    def send(self) -> None:
        self.device.upload_soon(self.numbers, self.host)
        self.device.mark(self._under_way)


class Step(Numbers):
    """What a decode step is about: position, seed, token, and the tables of pages."""

    def __init__(self, device: Device, pools: dict[int | None, Pool]) -> None:
        self._places: dict[int | None, int] = {}
        size = TABLES
        for window, pool in pools.items():
            self._places[window] = size
            size += pool.shape.ring
        super().__init__(device, size)
        self._rings = {window: pool.shape.ring for window, pool in pools.items()}

    @property
    def state(self) -> Any:
        """Position and seed."""
        return self.numbers[POSITION : SEED + 1]

    @property
    def token(self) -> Any:
        return self.numbers[TOKEN : TOKEN + 1]

    def table(self, window: int | None) -> Any:
        return self.numbers[self._places[window] : self._places[window] + self._rings[window]]

    def fill(self, cache: Cache, token: int, position: int, seed: int = 0) -> None:
        """Sends the numbers of the next step."""
        self.wait()
        self.host[POSITION], self.host[SEED], self.host[TOKEN] = position, seed, token
        for start, numbers in zip(self._places.values(), cache.numbers, strict=True):
            self.host[start : start + len(numbers)] = numbers
        self.send()


class Batch(Numbers):
    """What a pass over many tokens is about: tokens, positions, sequences, tables of pages, tiles of attention.

    Attributes:
        rows: tokens of the last pass.
    """

    def __init__(self, device: Device, pools: dict[int | None, Pool]) -> None:
        self._tables: dict[int | None, int] = {}
        self._tiles: dict[int | None, int] = {}
        self._pools, self.rows = pools, 0
        self._counts: dict[int | None, int] = {}
        size = 3 * CHUNK + OUTPUTS
        for window, pool in pools.items():
            self._tables[window] = size
            size += SEQUENCES * pool.shape.ring
            self._tiles[window] = size
            size += 4 * (CHUNK // tile_tokens(pool.shape) + SEQUENCES)
        super().__init__(device, size)

    @property
    def tokens(self) -> Any:
        return self.numbers[:CHUNK]

    @property
    def positions(self) -> Any:
        return self.numbers[CHUNK : 2 * CHUNK]

    @property
    def sequences(self) -> Any:
        return self.numbers[2 * CHUNK : 3 * CHUNK]

    @property
    def selected(self) -> Any:
        """Rows whose logits are asked for."""
        return self.numbers[3 * CHUNK : 3 * CHUNK + OUTPUTS]

    def tables(self, window: int | None) -> Any:
        return self.numbers[self._tables[window] : self._tiles[window]]

    def tiles(self, window: int | None) -> Any:
        return self.numbers[self._tiles[window] :]

    def tile_count(self, window: int | None) -> int:
        return self._counts[window]

    def fill(self, runs: list[Run]) -> None:
        """Sends the numbers of the next pass."""
        self.wait()
        at = 0
        tiles: dict[int | None, list[int]] = {window: [] for window in self._pools}
        for s, run in enumerate(runs):
            n = len(run.tokens)
            self.host[at : at + n] = run.tokens
            self.host[CHUNK + at : CHUNK + at + n] = np.arange(run.start, run.start + n)
            self.host[2 * CHUNK + at : 2 * CHUNK + at + n] = s
            for (window, pool), numbers in zip(self._pools.items(), run.cache.numbers, strict=True):
                start, step = self._tables[window] + s * pool.shape.ring, tile_tokens(pool.shape)
                self.host[start : start + len(numbers)] = numbers
                for i in range(0, n, step):
                    tiles[window] += [at + i, min(step, n - i), run.start + i, s]
            at += n
        for window, numbers in tiles.items():
            self.host[self._tiles[window] : self._tiles[window] + len(numbers)] = numbers
            self._counts[window] = len(numbers) // 4
        self.rows = at
        self.send()

    def select(self, rows: np.ndarray) -> None:
        """Sends which rows' logits are asked for."""
        self.wait()
        self.host[3 * CHUNK : 3 * CHUNK + len(rows)] = rows
        self.send()
