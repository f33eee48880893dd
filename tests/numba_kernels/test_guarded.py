"""The test mode that puts guard bytes around what kernels are given sees what is written there."""

from __future__ import annotations

import numpy as np
import pytest
from guarded import GuardedTeam, Overrun, guarded_arrays, guarded_rows

from numba_kernels import parallel
from numba_kernels.codec import call
from numba_kernels.cpu.op import op
from numba_kernels.cpu.team import take
from numba_kernels.simd.memory import get_f32, set_f32


@op
def doubling(values, values_stride, rows, columns, beyond, team, thread):  # type: ignore[no-untyped-def]
    """Doubles rows of numbers, and the first one `beyond` them."""
    for r in range(rows):
        for c in range(columns):
            at = values + r * values_stride + 4 * c
            set_f32(at, 2 * get_f32(at))
    if beyond:
        set_f32(values + rows * values_stride + 4 * (beyond - 1), np.float32(1))


@op
def doubled_by_all(values, out, count, before, team, thread):  # type: ignore[no-untyped-def]
    item = take(team)
    while item < count:
        set_f32(out + 4 * item, 2 * get_f32(values + 4 * item))
        item = take(team)
    if before:
        set_f32(out - 4 * before, np.float32(1))


@pytest.fixture(scope="module")
def team():
    found = GuardedTeam(2)
    yield found
    found.close()


@pytest.mark.parametrize("view", [slice(None), slice(8, 40)])
def test_results_come_back(team, view):
    values, out = np.arange(48, dtype=np.float32), np.zeros(48, np.float32)
    count = len(values[view])
    team.call(doubled_by_all, values=values[view], out=out[view], count=count, before=0)
    np.testing.assert_array_equal(out[view], 2 * values[view])
    assert out.sum() == 2 * values[view].sum()


@pytest.mark.parametrize("before", [1, 1000])
def test_what_is_written_before_an_array_is_seen(team, before):
    values = np.arange(48, dtype=np.float32)
    with pytest.raises(Overrun, match="4 bytes before an array of 192 bytes"):
        team.call(doubled_by_all, values=values, out=np.zeros(48, np.float32), count=48, before=before)


@pytest.mark.parametrize("beyond", [1, 900])
def test_what_is_written_behind_rows_is_seen(beyond):
    over_rows = guarded_rows(call.over_rows)
    values = np.ones((3, 5), np.float32)
    over_rows(doubling, 3, {"values": values}, columns=5, beyond=0)
    assert (values == 2).all()
    with pytest.raises(Overrun, match="bytes behind an array of 60 bytes"):
        over_rows(doubling, 3, {"values": values}, columns=5, beyond=beyond)


def test_what_a_compiled_function_writes_behind_an_array_is_seen():
    def kernel(given, out, beyond):
        out[:] = given
        np.lib.stride_tricks.as_strided(out, (out.shape[0] + beyond, *out.shape[1:]), out.strides)[-1] = 3

    over_rows = guarded_arrays(parallel.over_rows)
    given, out = np.ones((4, 2)), np.zeros((4, 2))
    over_rows(kernel, [given], [out], [0])
    assert out.sum() == 12
    with pytest.raises(Overrun, match="16 bytes behind"):
        over_rows(kernel, [given], [out], [1])
