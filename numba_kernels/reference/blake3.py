"""BLAKE3 in plain Python, as the paper's sections 2.1 to 2.5 say it."""

from __future__ import annotations

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF


def blake3(data: bytes) -> bytes:
    """The hash: 32 bytes."""
    return _bytes(_node(data, 0, ROOT))


def _node(data: bytes, first_chunk: int, root: int) -> list[int]:
    """The chaining value of the subtree of these bytes, whose first chunk has this number."""
    if len(data) <= 1024:
        return _chunk(data, first_chunk, root)
    left = 1024
    while 2 * left < len(data):
        left *= 2
    children = _node(data[:left], first_chunk, 0), _node(data[left:], first_chunk + left // 1024, 0)
    return _compress(IV, b"".join(map(_bytes, children)), 0, 64, PARENT | root)


def _chunk(data: bytes, number: int, root: int) -> list[int]:
    value, blocks = list(IV), [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        flags = (CHUNK_START if i == 0 else 0) | (CHUNK_END | root if i == len(blocks) - 1 else 0)
        value = _compress(value, block.ljust(64, b"\0"), number, len(block), flags)
    return value


def _compress(value: tuple[int, ...] | list[int], block: bytes, counter: int, length: int, flags: int) -> list[int]:
    words = [int.from_bytes(block[i : i + 4], "little") for i in range(0, 64, 4)]
    state = [*value, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for _ in range(7):
        for column in range(4):
            _mix(state, column, 4 + column, 8 + column, 12 + column, words[2 * column], words[2 * column + 1])
        for column in range(4):
            places = (column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
            _mix(state, *places, words[8 + 2 * column], words[9 + 2 * column])
        words = [words[i] for i in PERMUTATION]
    return [state[i] ^ state[i + 8] for i in range(8)]


def _mix(state: list[int], a: int, b: int, c: int, d: int, x: int, y: int) -> None:
    for word, first, second in ((x, 16, 12), (y, 8, 7)):
        state[a] = (state[a] + state[b] + word) & MASK
        state[d] = _rotated(state[d] ^ state[a], first)
        state[c] = (state[c] + state[d]) & MASK
        state[b] = _rotated(state[b] ^ state[c], second)


def _rotated(x: int, bits: int) -> int:
    return (x >> bits | x << (32 - bits)) & MASK


def _bytes(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)
