"""Tokens that the device chooses from logits by itself, the likeliest or drawn: four bytes of each are sent to the host, not its
logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numba_kernels.cuda.device import Device
from numba_kernels.cuda.rows import choose_kernel
from numba_kernels.cuda.seam import SIMULATED, Kernel
from oss_tools.engine.backend import Draw
from oss_tools.engine.cuda_inputs import OUTPUTS

CHOOSERS = 2 if SIMULATED else 64  # blocks that look for the largest logit


def sampling_kernel() -> Kernel:
    return choose_kernel(2 if SIMULATED else 8)


class Sampler:
    """Chooses from rows of logits, float32 [vocabulary]. `buffer` gives memory on the device by its role."""

    def __init__(self, device: Device, kernel: Kernel, buffer: Callable[[str, int, Any], Any], vocabulary: int) -> None:
        self._device, self._kernel, self._buffer, self._vocabulary = device, kernel, buffer, vocabulary

    def choose_likeliest(self, logits: Any) -> None:
        """Of one row."""
        state, greedy = self._buffer("likeliest state", 2, np.int32), self._buffer("likeliest settings", 1, np.float32)
        self.launch(logits, state, greedy, self._choices, self._unused)

    def send(self, draws: list[Draw]) -> None:
        """What the next rows are drawn by."""
        states = np.array([(d.position, d.seed) for d in draws], np.int64).astype(np.int32).reshape(-1)
        self._device.upload(self._states, states)
        self._device.upload(self._settings, np.array([_inverse(d.temperature) for d in draws], np.float32))

    def choose(self, logits: Any, count: int) -> None:
        """Of so many rows, one behind another, by what was sent."""
        for i in range(count):
            row = logits[i * self._vocabulary : (i + 1) * self._vocabulary]
            state, place = self._states[2 * i : 2 * i + 2], self._choices[i : i + 1]
            self.launch(row, state, self._settings[i : i + 1], place, self._unused)

    def chosen(self, count: int) -> np.ndarray:
        """The tokens that were chosen last, int32 [count]."""
        return self._device.download(self._choices, 0, count)

    def launch(self, logits: Any, state: Any, settings: Any, token: Any, history: Any) -> None:
        """state: position and seed; settings: 1 / temperature; token: where the choice is written; history: where it is written
        too, at its position."""
        best, numbers = self._buffer("best", CHOOSERS, np.float32), self._buffer("best numbers", CHOOSERS, np.int32)
        counter = self._buffer("choice counter", 1, np.int32)
        self._device.launch(
            self._kernel, CHOOSERS, logits, self._vocabulary, state, settings, best, numbers, counter, token, history
        )  # fmt: skip

    def constant(self, temperature: float) -> Any:
        """Settings of tokens that are all drawn at one temperature."""
        settings = self._buffer("settings", 1, np.float32)
        self._device.upload(settings, np.array([_inverse(temperature)], np.float32))
        return settings

    @property
    def _states(self) -> Any:
        """Position and seed of each row."""
        return self._buffer("draw states", 2 * OUTPUTS, np.int32)

    @property
    def _settings(self) -> Any:
        return self._buffer("draws", OUTPUTS, np.float32)

    @property
    def _choices(self) -> Any:
        """Chosen tokens, [OUTPUTS]."""
        return self._buffer("choices", OUTPUTS, np.int32)

    @property
    def _unused(self) -> Any:
        """Where tokens are written that nobody looks for."""
        return self._buffer("unused", 1, np.int32)


def _inverse(temperature: float) -> float:
    """1 / temperature; 0 takes the likeliest."""
    return 1 / temperature if temperature > 0 else 0
