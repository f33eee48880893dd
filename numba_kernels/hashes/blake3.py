"""BLAKE3, a cryptographic hash that is a tree: many of its chunks are hashed side by side, one in each vector lane.

Source: J. O'Connor, J.-P. Aumasson, S. Neves, Z. Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", sections 2.1 to
2.5. The keyed modes, and results longer than 32 bytes, are not here.

The leaves are chunks of 1,024 bytes, of 16 blocks each. An inner node hashes the values, 32 bytes each, of its two children. The
left one is a full subtree, of the largest power of two of chunks that leaves something for the right one. So every aligned
run of as many chunks as a power of two is one subtree, except at the end: data is taken in groups of GROUP chunks, and the
values of the groups are joined as they come.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import I32, I64, Builder, Value
from numba_kernels.simd.memory import get_u8
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import Address, Int, Void, operation

BLOCK, CHUNK = 64, 1024  # bytes
GROUP = 256  # chunks
GROUP_BYTES = GROUP * CHUNK
DEPTH = 48  # of the stack of groups: enough for 2^64 bytes
LANES = ACTIVE.lanes if ACTIVE.architecture == "x86" else 4  # chunks or nodes at a time: as many as a register has words
START, END, PARENT, ROOT = 1, 2, 4, 8  # flags
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ROUNDS = 7
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)  # of the message's words, from round to round
MIXES = (  # the state's words that a quarter of a round mixes: columns, then diagonals
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)


@operation(Void, Address, Address, Int, Int, Int, Int, Int)
def _compress(
    b: Builder, values: Value, message: Value, stride: Value, counter: Value, step: Value, length: Value, flags: Value
) -> None:
    """Compresses one block a lane.

    Args:
        values: the chaining values, uint32 [8, LANES], replaced by the new ones.
        message: of lane 0's block of 64 bytes; those of the others follow every `stride` bytes.
        counter, step: lane i has the counter `counter` + i · `step`. No lane's may pass a multiple of 2^32.
        length: bytes of the block that are of the message.
        flags: of all lanes.
    """
    kind = emit.vector(I32, LANES)
    lanes = emit.constant(I32, range(LANES))
    words = _transposed_blocks(b, message, stride)
    state = [emit.load(b, emit.advance(b, values, 4 * LANES * i), kind) for i in range(8)]
    state += [emit.same(kind, word) for word in IV[:4]]
    low = emit.splat(b, b.trunc(counter, I32), LANES)
    state.append(b.add(low, b.mul(emit.splat(b, b.trunc(step, I32), LANES), lanes)))
    state.append(emit.splat(b, b.trunc(b.lshr(counter, I64(32)), I32), LANES))
    state += [emit.splat(b, b.trunc(scalar, I32), LANES) for scalar in (length, flags)]
    for _ in range(ROUNDS):
        for quarter, (i, j, k, m) in enumerate(MIXES):
            x, y = words[2 * quarter], words[2 * quarter + 1]
            state[i], state[j], state[k], state[m] = _mixed(b, state[i], state[j], state[k], state[m], x, y)
        words = [words[place] for place in PERMUTATION]
    for i in range(8):
        emit.store(b, b.xor(state[i], state[i + 8]), emit.advance(b, values, 4 * LANES * i))


def _mixed(b: Builder, p: Value, q: Value, r: Value, s: Value, x: Value, y: Value) -> tuple[Value, Value, Value, Value]:
    """The quarter-round G of two words of the message."""
    for word, first, second in ((x, 16, 12), (y, 8, 7)):
        p = b.add(b.add(p, q), word)
        s = _rotated(b, b.xor(s, p), first)
        r = b.add(r, s)
        q = _rotated(b, b.xor(q, r), second)
    return p, q, r, s


def _rotated(b: Builder, x: Value, bits: int) -> Value:
    """Words rotated to the right."""
    return b.or_(b.lshr(x, emit.same(x.type, bits)), b.shl(x, emit.same(x.type, 32 - bits)))


def _transposed_blocks(b: Builder, message: Value, stride: Value) -> list[Value]:
    """Word i of all lanes' blocks, for i = 0 … 15."""
    kind = emit.vector(I32, LANES)
    starts = [b.add(message, b.mul(stride, I64(lane))) for lane in range(LANES)]
    words = []
    for part in range(0, 16, LANES):
        square = [emit.load(b, emit.advance(b, start, 4 * part), kind) for start in starts]
        distance = 1
        while distance < LANES:
            square = _exchanged(b, square, distance)
            distance *= 2
        words += square
    return words


def _exchanged(b: Builder, square: list[Value], distance: int) -> list[Value]:
    """One step of a transposition: of every two rows `distance` apart, the blocks off the diagonal change places."""
    result = list(square)
    upper = [lane if not lane & distance else LANES + lane - distance for lane in range(LANES)]
    lower = [lane + distance if not lane & distance else LANES + lane for lane in range(LANES)]
    for row in range(LANES):
        if not row & distance:
            pair = square[row], square[row + distance]
            result[row], result[row + distance] = (emit.shuffle(b, *pair, lanes) for lanes in (upper, lower))
    return result


@njit(nogil=True, boundscheck=False)
def compress(values: int, message: int, stride: int, counter: int, step: int, length: int, flags: int) -> None:
    """`_compress` as a function that is compiled once, and called."""
    _compress(values, message, stride, counter, step, length, flags)


@njit(nogil=True, boundscheck=False)
def _begin(state: np.ndarray) -> None:
    """Sets the chaining values of all lanes to the initial ones."""
    for i in range(8):
        for lane in range(LANES):
            state[i, lane] = IV[i]


@njit(nogil=True, boundscheck=False)
def _take(state: np.ndarray, nodes: np.ndarray, first: int, count: int) -> None:
    """Puts the values of the first lanes into nodes[first : first + count]."""
    for lane in range(count):
        for i in range(8):
            nodes[first + lane, i] = state[i, lane]


@njit(nogil=True, boundscheck=False)
def _partial_chunk(data: int, size: int, chunk: int, root: int, padded: np.ndarray, state: np.ndarray) -> None:
    """The value of a chunk of 0 … 1,024 bytes, in lane 0 of the state. padded: uint8 [BLOCK], scratch."""
    _begin(state)
    blocks = max((size + BLOCK - 1) // BLOCK, 1)
    for block in range(blocks):
        length = min(size - BLOCK * block, BLOCK)
        for i in range(BLOCK):
            padded[i] = get_u8(data + BLOCK * block + i) if i < length else 0
        flags = (START if block == 0 else 0) | ((END | root) if block == blocks - 1 else 0)
        compress(state.ctypes.data, padded.ctypes.data, 0, chunk, 0, length, flags)


@njit(nogil=True, boundscheck=False)
def _join(nodes: np.ndarray, count: int, root: int, state: np.ndarray) -> None:
    """Joins the values of `count` neighbours, level by level, to their subtree's, in nodes[0]."""
    while count > 1:
        pairs = count // 2
        flags = PARENT | (root if count == 2 else 0)
        for first in range(0, pairs, LANES):
            _begin(state)
            compress(state.ctypes.data, nodes.ctypes.data + 2 * 32 * first, BLOCK, 0, 0, BLOCK, flags)
            _take(state, nodes, first, min(LANES, pairs - first))
        if count % 2:
            for i in range(8):
                nodes[pairs, i] = nodes[count - 1, i]
        count = pairs + count % 2


@njit(nogil=True, boundscheck=False)
def _subtree(data: int, size: int, chunk: int, root: int, padded: np.ndarray, state: np.ndarray, nodes: np.ndarray) -> None:
    """The value of a subtree of at most GROUP chunks, in nodes[0].

    Args:
        data, size: the address of its bytes, and how many there are.
        chunk: the number of its first chunk, a multiple of GROUP.
        root: ROOT if it is the whole tree, else 0.
        padded, state, nodes: scratch, see `_hash`.
    """
    whole = size // CHUNK // LANES * LANES  # chunks that fill all lanes
    for first in range(0, whole, LANES):
        _begin(state)
        for block in range(CHUNK // BLOCK):
            flags = (START if block == 0 else 0) | (END if block == CHUNK // BLOCK - 1 else 0)
            compress(state.ctypes.data, data + CHUNK * first + BLOCK * block, CHUNK, chunk + first, 1, BLOCK, flags)
        _take(state, nodes, first, LANES)
    count = whole
    while CHUNK * count < size or count == 0:
        length = min(size - CHUNK * count, CHUNK)
        _partial_chunk(data + CHUNK * count, length, chunk + count, root if size <= CHUNK else 0, padded, state)
        _take(state, nodes, count, 1)
        count += 1
    _join(nodes, count, root, state)


@njit(nogil=True, cache=True, boundscheck=False)
def _hash(
    data: int, groups: int, last: int, done: int, stack: np.ndarray, padded: np.ndarray, state: np.ndarray, nodes: np.ndarray
) -> None:
    """Takes data in; at its end, leaves the hash in nodes[0].

    Args:
        data: the address of the bytes.
        groups: whole groups, behind which there is more.
        last: bytes behind them, at most a group, if these are the end of all data; else −1.
        done: groups that were taken in before.
        stack: uint32 [DEPTH, 8]: values of subtrees of groups, the largest first: one for every 1 of `done` in binary.
        padded, state, nodes: scratch: uint8 [BLOCK], uint32 [8, LANES] and uint32 [GROUP + 2 · LANES, 8].
    """
    top = 0
    for bit in range(DEPTH):
        top += (done >> bit) & 1
    for group in range(groups + (last >= 0)):
        is_last = group == groups
        root = ROOT if is_last and done + groups == 0 else 0
        size = last if is_last else GROUP_BYTES
        _subtree(data + GROUP_BYTES * group, size, GROUP * (done + group), root, padded, state, nodes)
        left = (
            done + group + 1
        )  # how often it ends in a binary 0: so many subtrees are as large as what they are joined with
        while top > 0 and (is_last or left % 2 == 0):
            top -= 1
            for i in range(8):
                nodes[1, i] = nodes[0, i]
                nodes[0, i] = stack[top, i]
            _join(nodes, 2, ROOT if is_last and top == 0 else 0, state)
            left //= 2
        if not is_last:
            for i in range(8):
                stack[top, i] = nodes[0, i]
            top += 1


class Blake3:
    """The hash of bytes that come piece by piece, as hashlib's classes are used. Releases the GIL; for one thread at a time."""

    def __init__(self) -> None:
        self._pending = np.empty(GROUP_BYTES, np.uint8)
        self._filled = 0
        self._done = 0  # groups
        self._stack = np.empty((DEPTH, 8), np.uint32)
        scratch = np.empty(BLOCK, np.uint8), np.empty((8, LANES), np.uint32), np.empty((GROUP + 2 * LANES, 8), np.uint32)
        self._scratch = scratch

    def update(self, data: np.ndarray) -> None:
        """Takes in the bytes of a C-contiguous array."""
        view = data.reshape(-1).view(np.uint8)
        while self._filled and len(view):
            taken = min(GROUP_BYTES - self._filled, len(view))
            if not taken:  # the group is full, and not the last one
                self._take(self._pending, 1)
                self._filled = 0
                break
            self._pending[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
        if len(view):
            groups = (len(view) - 1) // GROUP_BYTES
            self._take(view, groups)
            rest = view[GROUP_BYTES * groups :]
            self._pending[: len(rest)] = rest
            self._filled = len(rest)

    def _take(self, data: np.ndarray, groups: int) -> None:
        if groups:
            _hash(data.ctypes.data, groups, -1, self._done, self._stack, *self._scratch)
            self._done += groups

    def digest(self) -> bytes:
        """32 bytes. More may be taken in afterwards."""
        _hash(self._pending.ctypes.data, 0, self._filled, self._done, self._stack, *self._scratch)
        return self._scratch[2][0].astype("<u4").tobytes()

    def hexdigest(self) -> str:
        return self.digest().hex()
