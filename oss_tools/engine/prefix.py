"""Keys and values of token runs already seen, so that a shared beginning is computed once.

A radix tree: each node holds a run of tokens and the keys and values of exactly those. The path from the root spells a
prefix. The least recently used leaves go first when the memory budget is exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class _Node:
    tokens: np.ndarray  # int32 [n]
    block: np.ndarray  # [n, ...]
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)  # by first token
    used: int = 0


class PrefixCache:
    """Blocks [n, …] of per-token data by token prefix, at most `budget` bytes of them."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._clock = 0
        self._root = _Node(np.empty(0, np.int32), np.empty((0, 0)), None)

    def longest(self, tokens: Sequence[int] | np.ndarray) -> tuple[int, list[np.ndarray]]:
        """The length of the longest known prefix of `tokens`, and its blocks in order."""
        path = self._walk(np.asarray(tokens, np.int32))
        return sum(n for _, n in path), [node.block[:n] for node, n in path]

    def insert(self, tokens: Sequence[int] | np.ndarray, start: int, block: np.ndarray) -> None:
        """Adds the data of tokens[start:], [n, …]. Of what is known already nothing is copied; if the tokens before
        `start` are no longer known, nothing is added."""
        tokens = np.asarray(tokens, np.int32)
        path = self._walk(tokens)
        known = sum(n for _, n in path)
        if known < start or known >= len(tokens) or self.budget <= 0:
            return
        parent = self._root
        if path:
            node, n = path[-1]
            parent = node if n == len(node.tokens) else self._split(node, n)
        self._clock += 1
        added = _Node(tokens[known:].copy(), block[known - start :].copy(), parent, used=self._clock)
        parent.children[int(tokens[known])] = added
        self.nbytes += added.block.nbytes
        self._evict()

    def _walk(self, tokens: np.ndarray) -> list[tuple[_Node, int]]:
        """The nodes that spell the longest known prefix, each with how many of its tokens match; marks them as used."""
        self._clock += 1
        path: list[tuple[_Node, int]] = []
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(int(tokens[at]))):
            n = min(len(child.tokens), len(tokens) - at)
            different = np.flatnonzero(child.tokens[:n] != tokens[at : at + n])
            n = int(different[0]) if len(different) else n
            child.used = self._clock
            path.append((child, n))
            at += n
            if n < len(child.tokens):
                break
            node = child
        return path

    def _split(self, node: _Node, n: int) -> _Node:
        """Cuts a node after n tokens; returns the upper part."""
        assert node.parent
        upper = _Node(node.tokens[:n].copy(), node.block[:n].copy(), node.parent, used=node.used)
        node.parent.children[int(node.tokens[0])] = upper
        node.tokens, node.block, node.parent = node.tokens[n:].copy(), node.block[n:].copy(), upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def _evict(self) -> None:
        """Drops the least recently used leaves until the budget holds."""
        while self.nbytes > self.budget:
            leaf = min(self._leaves(), key=lambda node: node.used)
            assert leaf.parent
            del leaf.parent.children[int(leaf.tokens[0])]
            self.nbytes -= leaf.block.nbytes

    def _leaves(self) -> list[_Node]:
        leaves, pending = [], [self._root]
        while pending:
            node = pending.pop()
            pending += node.children.values()
            if not node.children and node.parent:
                leaves.append(node)
        return leaves
