"""The probes read what they say they read."""

from __future__ import annotations

import numpy as np
import pytest
from problems import weights

from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.probe import PIECE, STEP, multiplying, rate, read_memory, reading


@pytest.mark.parametrize("size", [0, STEP, PIECE - STEP, 2 * PIECE + 3 * STEP])
def test_every_byte_is_read_once(team, size):
    values = np.ones(size // 4 + 5, np.float32)
    out = np.zeros(3, np.float32)
    team.call(read_memory, x=values, size=size, out=out)
    assert out.sum() == size // 4


def test_bytes_are_counted(team):
    arrays = [np.zeros(n, np.uint8) for n in (PIECE + STEP + 1, 10 * STEP)]
    program, nbytes = reading(arrays)
    assert nbytes == PIECE + 11 * STEP
    assert rate(team, program, nbytes, seconds=0) > 0


@pytest.mark.parametrize("name", ["mxfp4", "q8_0", "bf16"])
def test_all_matrices_of_a_stack_are_multiplied(team, name):
    planes, _ = weights(name, 40, 64, np.random.default_rng(0))
    packed = Packed(name, 3, 40, 64)
    for matrix in range(3):
        pack(packed, planes, matrix=matrix)
    program, nbytes = multiplying([packed, packed], team.threads)
    assert nbytes == 2 * packed.nbytes
    assert len(program.ops) == 2
    out = program._kept[-1]  # the last array given: the results
    out[:] = np.nan
    team.run(program)
    np.testing.assert_array_equal(out, 0)  # zero activations meet every row
