"""The best mixture under a budget: for each tensor a format, so that what is lost is least and the bytes suffice.

A multiple-choice knapsack, solved by dynamic programming over bytes in steps (https://doi.org/10.1007/978-3-540-24777-7, chapter
11): exact but for the steps, to which sizes are rounded up. So a larger budget never loses more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oss_tools.errors import BadRequest
from oss_tools.sizes import format_size

STEPS = 1 << 14


@dataclass(frozen=True)
class Option:
    """A format that a tensor may have.

    Attributes:
        format: its name.
        nbytes: of the tensor in it.
        loss: what its rounding adds to the divergence, in nats.
    """

    format: str
    nbytes: int
    loss: float


def frontier(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in both bytes and loss, smallest first."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if not found or option.loss < found[-1].loss:
            found.append(option)
    return found


def best_under(units: Sequence[Sequence[Option]], budget: int) -> list[Option]:
    """For each unit one of its options, so that the bytes are at most `budget` and the sum of losses is least.

    Raises BadRequest, with the least there is, if none fits.
    """
    fronts = [frontier(options) for options in units]
    least = sum(front[0].nbytes for front in fronts)
    if least > budget:
        raise BadRequest(f"{format_size(budget)} hold no mixture of these formats: the smallest takes {format_size(least)}")
    room = min(budget, sum(front[-1].nbytes for front in fronts)) - least  # to be spent on more than the smallest
    if not room:
        return [front[0] for front in fronts]
    step = max(room / STEPS, 1.0)
    spots = int(room / step) + 1
    best, taken = np.zeros(spots), []
    for front in fronts:
        losses = np.full((len(front), spots), np.inf)
        for i, option in enumerate(front):
            more = int(np.ceil((option.nbytes - front[0].nbytes) / step))
            if more < spots:
                losses[i, more:] = best[: spots - more] + option.loss
        taken.append(losses.argmin(0))
        best = losses.min(0)
    at = int(best.argmin())
    chosen = []
    for front, choices in zip(reversed(fronts), reversed(taken), strict=True):
        option = front[choices[at]]
        chosen.append(option)
        at -= int(np.ceil((option.nbytes - front[0].nbytes) / step))
    return chosen[::-1]


def least_under(units: Sequence[Sequence[Option]], loss: float) -> list[Option]:
    """For each unit one of its options, so that the sum of losses is at most `loss` with few bytes: the smallest budget, to one
    part in a thousand, whose best mixture loses no more. Raises BadRequest if even the largest loses more."""
    fronts = [frontier(options) for options in units]
    low, high = sum(front[0].nbytes for front in fronts), sum(front[-1].nbytes for front in fronts)
    if (lowest := sum(front[-1].loss for front in fronts)) > loss:
        raise BadRequest(f"no mixture of these formats loses so little: the largest has {lowest:.3g} nats")
    while high - low > max(high // 1000, 1):
        middle = (low + high) // 2
        if sum(option.loss for option in best_under(units, middle)) <= loss:
            high = middle
        else:
            low = middle
    return best_under(units, high)
