"""Whether two factors fit the weight that they are said to update, and how they lie."""

from __future__ import annotations

from oss_tools.adapters.changes import EmbeddingPair, Factors, Pair
from oss_tools.adapters.places import Place
from oss_tools.adapters.tensors import AdapterTensor

TABLES = ("embedding", "positions")


def fitted(places: list[Place], a: AdapterTensor, b: AdapterTensor) -> Pair | None:
    """The factors as those of a stored weight's matrices [out, in]; None if they do not fit.

    Stacks of experts come as [experts, rank, in] and [experts, out, rank], or as PEFT's `target_parameters`:
    [experts · rank, in] and [out, rank · experts]. Where a stack is kept as [out, in], PEFT before 0.18 took its first axis for
    the input.
    """
    place = places[0]
    out, columns, stacked = place.out, place.columns, place.stacked
    if place.spec.is_vector:
        return None
    if len(a.shape) == len(b.shape) == 3:
        rank = b.shape[2]
        fits = a.shape == (stacked, rank, columns) and b.shape == (stacked, out, rank)
        return Pair(a, b, rank, stacked) if fits else None
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] % stacked:
        return None
    rank = a.shape[0] // stacked
    if (b.shape[0], a.shape[1]) == (out, columns):
        return Pair(a, b, rank, stacked)
    if stacked > 1 and not place.placement.transposed and (b.shape[0], a.shape[1]) == (columns, out):
        return Pair(a, b, rank, stacked, flipped=True)
    return None


def fitted_table(places: list[Place], a: AdapterTensor, b: AdapterTensor, *, by_token: bool = False) -> EmbeddingPair | None:
    """The factors as those of an embedding's table; None if they do not fit."""
    place = places[0]
    if place.spec.role not in TABLES or len(a.shape) != 2 or len(b.shape) != 2:
        return None
    tokens, rank = a.shape if by_token else a.shape[::-1]
    fits = tokens == place.out and b.shape == (place.columns, rank)
    return EmbeddingPair(a, b, rank, by_token) if fits else None


def misfit(what: str, places: list[Place], a: AdapterTensor, b: AdapterTensor) -> str:
    """In words, that factors do not fit."""
    place = places[0]
    stack = [place.stacked] if place.stacked > 1 else []
    return (
        f"{what}: the factors have shapes {list(a.shape)} and {list(b.shape)}, the base's weight is "
        f"{[*stack, place.out, place.columns]}: this is another model's adapter"
    )


def rank_of(factors: Factors) -> int:
    assert isinstance(factors, Pair | EmbeddingPair)
    return factors.rank
