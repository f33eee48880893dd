"""SentencePiece's character map, held against its own bounds: a library that looks things up in it does not check them.

A map is the length of a trie in bytes (u32), the trie, and the texts to which it leads, each with a zero behind it
(`normalizer.cc`, `DecodePrecompiledCharsMap`). The trie is a double array of darts-clone (`darts.h`): a unit holds a label,
whether a value hangs on it, and where its children lie.
"""

from __future__ import annotations

import numpy as np

MAX_MAP = 4 << 20  # bytes; the largest published ones have some 600 kB
BLOCK = 256  # a node's children lie in one
AT_ONCE = 1024  # nodes


def fault_of(data: bytes) -> str | None:
    """What is wrong with a map; None if nothing is."""
    size = int.from_bytes(data[:4], "little")
    if len(data) > MAX_MAP:
        return f"of {len(data)} bytes, more than {MAX_MAP}"
    if len(data) <= 4 or size % 4 or not size or size > len(data) - 4:
        return f"damaged: a trie of {size} bytes in {len(data)}"
    texts = data[4 + size :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        return "damaged: its texts are not UTF-8"
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    return None if _leads_to_texts(units, np.frombuffer(texts, np.uint8)) else "damaged: its trie leads nowhere"


def longest_text(data: bytes) -> int:
    """Bytes of the longest text of a sound map."""
    size = int.from_bytes(data[:4], "little")
    return max(map(len, data[4 + size :].split(b"\0")))


def _leads_to_texts(units: np.ndarray, texts: np.ndarray) -> bool:
    """Whether every way through the trie (int64 [units]) stays in it, and every value in it is where a letter of the texts
    (uint8 [bytes]) begins."""
    offsets = (units >> 10) << ((units & 512) >> 6)
    seen = np.zeros(len(units), bool)  # nodes, by where their children lie
    waiting = offsets[:1]
    while len(waiting):
        nodes, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        if (nodes | (BLOCK - 1)).max() >= len(units):
            return False
        seen[nodes] = True
        places = nodes[:, None] ^ np.arange(BLOCK)
        found = places[(units[places] & 0x800000FF) == np.arange(BLOCK)]
        children = found ^ offsets[found]
        leaves = children[(units[found] >> 8) & 1 == 1]
        if len(leaves) and leaves.max() >= len(units):
            return False
        values = units[leaves] & 0x7FFFFFFF
        if len(values) and (values.max() >= len(texts) or ((texts[values] & 0xC0) == 0x80).any()):
            return False
        if len(children) and children.max() >= len(units):
            return False
        fresh = np.unique(children)
        waiting = np.concatenate([waiting, fresh[~seen[fresh]]])
        seen[fresh] = True
    return True
