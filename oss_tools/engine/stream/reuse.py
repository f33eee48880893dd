"""What a cache of so many experts hits of a sequence of accesses: by LRU, by the least often used, and at best."""

from __future__ import annotations

import heapq

import numpy as np

NEVER = np.iinfo(np.int64).max


def stack_distances(keys: np.ndarray) -> np.ndarray:
    """Of each access, how many different keys were asked for since the last access to its own, itself included; NEVER at the
    first. An LRU cache of n experts hits exactly the accesses whose distance is at most n.

    One pass with a Fenwick tree over time: O(n log n).
    """
    tree = [0] * (len(keys) + 1)
    found = np.full(len(keys), NEVER, np.int64)
    last: dict[int, int] = {}

    def add(place: int, value: int) -> None:
        while place < len(tree):
            tree[place] += value
            place += place & -place

    def upto(place: int) -> int:
        total = 0
        while place:
            total += tree[place]
            place &= place - 1
        return total

    for now, key in enumerate(keys.tolist(), start=1):
        before = last.get(key)
        if before is not None:
            found[now - 1] = len(last) - upto(before) + 1
            add(before, -1)
        add(now, 1)
        last[key] = now
    return found


def lru_hits(distances: np.ndarray, size: int) -> np.ndarray:
    """Which accesses an LRU cache of `size` experts hits, bool."""
    return distances <= size


def belady_hits(keys: np.ndarray, size: int) -> np.ndarray:
    """Which accesses the best possible cache of `size` experts hits, bool. An expert that is asked for has to be in it to be
    used, as in the engine, so none is passed by."""
    following = np.full(len(keys), len(keys), np.int64)
    seen: dict[int, int] = {}
    for now in range(len(keys) - 1, -1, -1):
        key = int(keys[now])
        following[now] = seen.get(key, len(keys))
        seen[key] = now
    hits = np.zeros(len(keys), bool)
    held: dict[int, int] = {}  # key → next use
    farthest: list[tuple[int, int]] = []  # (-next use, key); entries that `held` contradicts are stale
    for now, (key, after) in enumerate(zip(keys.tolist(), following.tolist(), strict=True)):
        if key in held:
            hits[now] = True
        elif len(held) >= size:
            while held.get(farthest[0][1]) != -farthest[0][0]:
                heapq.heappop(farthest)
            del held[heapq.heappop(farthest)[1]]
        held[key] = after
        heapq.heappush(farthest, (-after, key))
    return hits


def lfu_hits(keys: np.ndarray, size: int) -> np.ndarray:
    """Which accesses a cache of `size` experts hits that lets go of the least often used, bool. Uses are counted from the
    beginning, also while an expert is out; of equals the least recently used goes."""
    hits = np.zeros(len(keys), bool)
    uses: dict[int, int] = {}
    held: dict[int, tuple[int, int]] = {}  # key → (uses, last use)
    rarest: list[tuple[int, int, int]] = []
    for now, key in enumerate(keys.tolist()):
        uses[key] = uses.get(key, 0) + 1
        if key in held:
            hits[now] = True
        elif len(held) >= size:
            while held.get(rarest[0][2]) != rarest[0][:2]:
                heapq.heappop(rarest)
            del held[heapq.heappop(rarest)[2]]
        held[key] = (uses[key], now)
        heapq.heappush(rarest, (uses[key], now, key))
    return hits
