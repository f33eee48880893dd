"""The plain forms of the PTX instructions in `instructions`: what each computes, and what the simulator runs.

A word is a uint32. Loads and stores of four words need an index that is a multiple of 4 in an array that begins on a
multiple of 16 bytes, as all of the device's arrays do; the plain forms check that, and the bounds.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np

from numba_kernels.cuda.seam import WARP

# ---- numbers and memory ----------------------------------------------------------------------------------------------------


def _word(value: Any) -> np.uint32:
    return np.uint32(int(value) & 0xFFFFFFFF)


def _signed_bytes(word: Any) -> tuple[int, ...]:
    return struct.unpack("4b", struct.pack("<I", int(word) & 0xFFFFFFFF))


def dp4a(a: Any, b: Any, total: Any) -> np.int32:
    """total + Σ a[i] · b[i] over the four signed bytes of two words."""
    value = int(total) + sum(x * y for x, y in zip(_signed_bytes(a), _signed_bytes(b), strict=True))
    return np.uint32(value & 0xFFFFFFFF).view(np.int32)


def byte_permute(low: Any, high: Any, selector: Any) -> np.uint32:
    """Byte i of the result is byte s % 8 of (low, high), s the i-th nibble of the selector's low half; or eight copies of that
    byte's sign, where s is 8 or more."""
    data = struct.pack("<II", int(low), int(high))
    picked = []
    for i in range(4):
        s = int(selector) >> 4 * i & 15
        picked.append(data[s] if s < 8 else 255 * (data[s - 8] >> 7))
    return np.uint32(int.from_bytes(bytes(picked), "little"))


def bits_as_float(word: Any) -> np.float32:
    """The float32 with these bits."""
    return _word(word).view(np.float32)


def float_as_bits(value: Any) -> np.uint32:
    """The bits of a float32."""
    return np.float32(value).view(np.uint32)


def as_int(word: Any) -> np.int32:
    """The int32 with these bits."""
    return _word(word).view(np.int32)


def half_as_float(bits: Any) -> np.float32:
    """The value of an IEEE half-precision number."""
    return np.float32(np.uint16(int(bits)).view(np.float16))


def _bf16_bits(value: Any) -> int:
    bits = int(np.float32(value).view(np.uint32))
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF


def pack_bf16(low: Any, high: Any) -> np.uint32:
    """Two float32 as bfloat16, rounded to nearest with ties to even."""
    return np.uint32(_bf16_bits(low) | _bf16_bits(high) << 16)


def multiply_pairs(a: Any, b: Any, c: Any) -> np.uint32:
    """a · b + c on the two bfloat16 of each word, rounded once."""
    results = []
    for shift in (0, 16):
        x, y, z = (np.float64(bits_as_float((int(w) >> shift & 0xFFFF) << 16)) for w in (a, b, c))
        results.append(_bf16_bits(x * y + z))
    return np.uint32(results[0] | results[1] << 16)


def round_to_int(value: Any) -> np.int32:
    """The nearest integer, ties to even; out of range the nearest there is, and 0 for NaN."""
    value = np.float32(value)
    if np.isnan(value):
        return np.int32(0)
    return np.int32(np.clip(np.rint(np.float64(value)), -(2.0**31), 2.0**31 - 1))


def _four(array: Any, index: Any) -> int:
    at = int(index)
    if at % 4 or not 0 <= at <= len(array) - 4:
        raise IndexError(f"four elements at {at} of {len(array)}: outside of the array, or not on a multiple of 4")
    return at


def power_of_two(x: Any) -> np.float32:
    """2^x, as exact as the device's function units are."""
    return np.float32(np.exp2(np.float32(x)))


def reciprocal(x: Any) -> np.float32:
    """1 / x, to one unit in the last place."""
    with np.errstate(divide="ignore"):
        return np.float32(1) / np.float32(x)


def stream_words(array: Any, index: Any) -> tuple[Any, ...]:
    """Four words of memory that nothing writes during the kernel and that is read once: 16 bytes, past the first cache."""
    at = _four(array, index)
    return tuple(array[at + i] for i in range(4))


def early_words(array: Any, index: Any) -> tuple[Any, ...]:
    """As `stream_words`, of memory that nothing writes at all: a load that stays where it stands, before a kernel waits for the
    launch before it. (The assembler moves loads of what is constant in a kernel behind that.)"""
    return stream_words(array, index)


def early_floats(array: Any, index: Any) -> tuple[Any, ...]:
    """Four float32, alike."""
    at = _four(array, index)
    return tuple(array[at + i] for i in range(4))


def early_scale(array: Any, index: Any) -> np.uint16:
    """A scale of 8 or 16 bits, alike."""
    if not 0 <= int(index) < len(array):
        raise IndexError(f"element {index} of {len(array)}")
    return np.uint16(array[int(index)])


def settled(array: Any, index: Any) -> Any:
    """A float32 or int32 that a launch before the one before wrote, which has ended when this one begins: may be read before the
    wait for the launch before. (From the second cache, as the first may hold what was there earlier.)"""
    return load_fresh(array, index)


def settled_floats(array: Any, index: Any) -> tuple[Any, ...]:
    """Four float32, alike."""
    return early_floats(array, index)


def settled_words(array: Any, index: Any) -> tuple[Any, ...]:
    """Four words, alike."""
    return early_words(array, index)


def load_words(array: Any, index: Any) -> tuple[Any, ...]:
    """Four words, 16 bytes at once."""
    at = _four(array, index)
    return tuple(array[at + i] for i in range(4))


def load_floats(array: Any, index: Any) -> tuple[Any, ...]:
    """Four float32, 16 bytes at once."""
    at = _four(array, index)
    return tuple(array[at + i] for i in range(4))


def load_pair(array: Any, index: Any) -> tuple[Any, ...]:
    """Two words, 8 bytes at once; the index is even."""
    at = int(index)
    if at % 2 or not 0 <= at <= len(array) - 2:
        raise IndexError(f"two elements at {at} of {len(array)}: outside of the array, or not on a multiple of 2")
    return array[at], array[at + 1]


def load_fresh(array: Any, index: Any) -> Any:
    """A float32 or int32 that another block may just have written: past caches that do not see it."""
    if not 0 <= int(index) < len(array):
        raise IndexError(f"element {index} of {len(array)}")
    return array[int(index)]


def count_up(array: Any, index: Any) -> Any:
    """Adds 1 to an int32 and gives what was there. What this block's threads wrote before a barrier is seen by
    those of a block one of whose threads counts on, after another barrier."""
    with _meetings_lock:
        before = load_fresh(array, index)
        array[int(index)] = before + 1
    return before


def store_words(array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """Stores four words, 16 bytes at once."""
    at = _four(array, index)
    for i, word in enumerate((a, b, c, d)):
        array[at + i] = _word(word)


def store_floats(array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """Stores four float32, 16 bytes at once."""
    at = _four(array, index)
    for i, value in enumerate((a, b, c, d)):
        array[at + i] = value


def prefetch(array: Any, index: Any) -> None:
    """Asks for the line of memory that holds an element to be brought into the second cache. The element must exist."""
    if not 0 <= int(index) < len(array):
        raise IndexError(f"prefetch of element {index} of {len(array)}")


def prefetch_span(array: Any, index: Any, size: Any) -> None:
    """The same for `size` bytes from an element on; it lies at a multiple of 16 bytes, and the size is one."""
    at, size = int(index) * array.itemsize, int(size)
    if at % 16 or size % 16 or not (size > 0 and 0 <= at <= array.nbytes - size):
        raise IndexError(f"prefetch of {size} bytes from byte {at} of {array.nbytes}")


# ---- launches that overlap -------------------------------------------------------------------------------------------


def wait_for_launch_before() -> None:
    """Waits until the launch before this one is done and what it wrote is seen. The device may begin a launch while the one
    before it still runs: until here a kernel touches nothing but weights, which nothing writes."""


def let_next_begin() -> None:
    """Allows the next launch to begin as soon as all blocks of this one have come here, or have ended."""


# ---- what a warp does together -----------------------------------------------------------------------


class _Meeting:
    """Where the threads of a simulated warp hand each other values. Two sets of places, so that one barrier is enough."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(WARP, timeout=60)
        self.values: tuple[list[Any], list[Any]] = ([None] * WARP, [None] * WARP)
        self.turns = [0] * WARP


_meetings_lock = threading.Lock()


def _exchange(value: Any) -> tuple[int, list[Any]]:
    """(this thread's lane, what all threads of its warp gave). Every thread of the warp has to call it."""
    thread: Any = threading.current_thread()
    warp, lane = divmod(thread.thread_id, WARP)
    with _meetings_lock:
        meetings = thread._manager.__dict__.setdefault("meetings", {})
        meeting = meetings.setdefault(warp, _Meeting())
    values = meeting.values[meeting.turns[lane] % 2]
    meeting.turns[lane] += 1
    values[lane] = value
    meeting.barrier.wait()
    return lane, list(values)


def shuffle_xor(value: Any, mask: Any) -> Any:
    """The value of the thread whose lane differs in the bits of `mask`."""
    lane, values = _exchange(value)
    return values[lane ^ int(mask)]


def warp_sum(value: Any) -> np.float32:
    """The sum over the warp, the same in every thread: pairs 16 lanes apart first, then 8, 4, 2 and 1."""
    _, values = _exchange(np.float32(value))
    sums = np.array(values, np.float32)
    for mask in (16, 8, 4, 2, 1):
        sums = sums + sums[np.arange(WARP) ^ mask]
    return np.float32(sums[0])


def warp_max(value: Any) -> np.float32:
    """The largest over the warp, the same in every thread."""
    _, values = _exchange(np.float32(value))
    return np.float32(max(values))


def largest_of_warp(value: Any) -> np.uint32:
    """The largest of the warp's words, in every thread."""
    return np.uint32(max(_exchange(np.uint32(value))[1]))


def least_of_warp(value: Any) -> np.uint32:
    """The least, alike."""
    return np.uint32(min(_exchange(np.uint32(value))[1]))


def warp_barrier() -> None:
    """Threads of the warp wait for each other; what they wrote is seen by all of them."""
    _exchange(None)


def _bf16_pair(word: Any) -> tuple[float, float]:
    bits = int(word)
    return (float(bits_as_float((bits & 0xFFFF) << 16)), float(bits_as_float(bits & 0xFFFF0000)))


def multiply_tiles(
    a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any, c0: Any, c1: Any, c2: Any, c3: Any
) -> tuple[Any, ...]:
    """C [16, 8] + A [16, 16] · B [16, 8], A and B bfloat16, C float32, spread over the warp.

    With lane = 4 · g + t: a0, a1 hold rows g and g + 8 of A at columns 2t, 2t + 1; a2, a3 the same rows at columns 2t + 8,
    2t + 9. b0, b1 hold column g of B at rows 2t, 2t + 1 and 2t + 8, 2t + 9. c0, c1 hold row g of C at columns 2t, 2t + 1,
    and c2, c3 row g + 8. Source: PTX ISA, `mma.m16n8k16`.
    """
    lane, given = _exchange((a0, a1, a2, a3, b0, b1))
    g, t = divmod(lane, 4)
    out = [float(c) for c in (c0, c1, c2, c3)]
    for half in (0, 2):  # columns of A, rows of B
        for other in range(4):
            low, high = (_bf16_pair(given[4 * g + other][half + i]) for i in (0, 1))
            for column in (0, 1):
                b = _bf16_pair(given[4 * (2 * t + column) + other][4 + half // 2])
                out[column] += low[0] * b[0] + low[1] * b[1]
                out[2 + column] += high[0] * b[0] + high[1] * b[1]
    return tuple(np.float32(value) for value in out)
