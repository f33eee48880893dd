"""Routers and gates in NumPy: which experts a token meets, and what a gate makes of two projections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oss_tools.models.operations import Gate, Router


@dataclass(frozen=True)
class Routing:
    """The experts of each token, int [N, chosen], and their weights, float32 [N, chosen]."""

    chosen: np.ndarray
    weights: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), float32, without overflow."""
    return np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))


def gated_value(g: np.ndarray, u: np.ndarray, gate: Gate) -> np.ndarray:
    """What `Gate` says of a gate g and an up projection u."""
    if gate.form == "silu":
        return g * sigmoid(g) * u
    limit = np.float32(gate.limit)
    g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    return g * sigmoid(np.float32(gate.alpha) * g) * (u + 1)


def route(logits: np.ndarray, router: Router, correction: np.ndarray | None) -> Routing:
    """The experts that a `Router` chooses by logits, float32 [n, experts], and their weights."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    scores = sigmoid(logits) if router.score == "sigmoid" else exponents / exponents.sum(-1, keepdims=True)
    corrected = scores if correction is None else scores + correction
    best = corrected if correction is not None or router.score == "sigmoid" else logits  # the logits' order, without ties
    if router.is_grouped:
        groups = np.sort(corrected.reshape(len(logits), router.groups, -1), -1)
        of_group = groups[..., -2:].sum(-1) if router.group_score == "top2" else groups[..., -1]
        kept = np.argsort(-of_group, -1, kind="stable")[:, : router.groups_chosen]
        shut = np.ones(of_group.shape, bool)
        np.put_along_axis(shut, kept, False, -1)
        best = np.where(np.repeat(shut, groups.shape[-1], -1), -np.inf, best)
    chosen = np.argsort(-best, -1, kind="stable")[:, : router.chosen]
    weights = np.take_along_axis(exponents if router.score == "softmax" and router.renormalized else scores, chosen, -1)
    if router.renormalized:
        weights = weights / (weights.sum(-1, keepdims=True) + (router.epsilon if router.score == "sigmoid" else 0))
    return Routing(chosen, (weights * router.scale).astype(np.float32))
