"""The choice of a token's experts from the router's logits, by one warp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_kernels.cuda.intrinsics import (
    bits_as_float,
    float_as_bits,
    largest_of_warp,
    least_of_warp,
    load_fresh,
    settled,
    shuffle_xor,
    warp_barrier,
    warp_max,
    warp_sum,
)
from numba_kernels.cuda.seam import WARP, cuda, device

TOP = 1
EXPERTS = 1
SLICES = 1  # of EXPERTS by lanes
SIGMOID = RENORMALIZED = CORRECTED = 0
GROUPS = GROUPS_CHOSEN = GROUP_BEST = 1
GROUP_SIZE = 1
PICK: Any = None
KEY_OF: Any = None
VALUE_OF: Any = None
SHARED = 1  # whether the weights are asked for
ZERO, ONE = np.float32(0), np.float32(1)
LOWEST = np.float32(-math.inf)
NOTHING, LEAST, SIGN, ALL_BITS = np.uint32(0), np.uint32(1), np.uint32(0x80000000), np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class Choice:
    """How experts and their weights follow from logits: `oss_tools.models.operations.Router` in a kernel's terms.

    Attributes:
        experts, top: how many there are, and how many a token has.
        sigmoid: whether scores are a sigmoid of the logits rather than their softmax.
        renormalized: whether the weights of the chosen are divided by their sum.
        corrected: whether something is added to the scores for the choice.
        groups, groups_chosen, group_best: experts of the best groups only may be chosen, by the sum of so many best scores.
    """

    experts: int
    top: int
    sigmoid: bool = False
    renormalized: bool = True
    corrected: bool = False
    groups: int = 1
    groups_chosen: int = 1
    group_best: int = 2

    @property
    def is_plain(self) -> bool:
        """Whether it is the softmax of the largest logits."""
        return not self.sigmoid and self.renormalized and not self.corrected and self.groups_chosen == self.groups

    @property
    def name(self) -> str:
        """For names of kernels."""
        if self.is_plain:
            return "plain"
        how = f"{'sigmoid' if self.sigmoid else 'softmax'}{int(self.renormalized)}{int(self.corrected)}"
        return f"{how}g{self.groups}g{self.groups_chosen}b{self.group_best}"

    @property
    def held(self) -> int:
        """Scores in shared memory."""
        return self.experts

    def best(self, shared: bool) -> Any:
        """The device function of kernels that choose for themselves, for a plain choice; shared: whether they need weights."""
        sizes = {"SHARED": int(shared), "EXPERTS": self.experts, "TOP": self.top, "SLICES": -(-self.experts // WARP)}
        return device(best_by_logit, **sizes, KEY_OF=key_of, VALUE_OF=value_of)

    def function(self) -> Any:
        """The device function."""
        slices = -(-self.experts // WARP)
        sizes = {"EXPERTS": self.experts, "TOP": self.top, "SLICES": slices}
        picker = device(pick, **sizes)
        if self.is_plain:
            return device(choose_by_logit, **sizes, PICK=picker)
        return device(
            choose_by_score, **sizes, SIGMOID=int(self.sigmoid), RENORMALIZED=int(self.renormalized),
            CORRECTED=int(self.corrected), GROUPS=self.groups, GROUPS_CHOSEN=self.groups_chosen,
            GROUP_BEST=self.group_best, GROUP_SIZE=self.experts // self.groups, PICK=picker,
        )  # fmt: skip


def pick(values, chosen):  # type: ignore[no-untyped-def]
    """The largest of EXPERTS values that is not among those chosen, the lower number of equals; by one warp."""
    best, number = LOWEST, EXPERTS
    for i in range(SLICES):
        expert = i * WARP + cuda.threadIdx.x % WARP
        if expert < EXPERTS:
            taken = False
            for k in range(TOP):
                taken = taken or chosen[k] == expert
            value = values[expert]
            if not taken and (number == EXPERTS or value > best):
                best, number = value, expert
    for mask in (16, 8, 4, 2, 1):
        other, other_number = shuffle_xor(best, mask), shuffle_xor(number, mask)
        if other_number < EXPERTS and (number == EXPERTS or other > best or (other == best and other_number < number)):
            best, number = other, other_number
    return best, number


def choose_by_logit(  # type: ignore[no-untyped-def]
    logits, first, correction, scores, merits, groups, chosen, share_scale, share_epsilon, ids, shares, at
):
    """The TOP largest logits from `first` on and the softmax of them, times share_scale; written from `at` on. scores and merits
    [EXPERTS] are shared: the logits, and the numerators of what is written."""
    lane, total, top = cuda.threadIdx.x % WARP, ZERO, ZERO
    for i in range(SLICES):
        if i * WARP + lane < EXPERTS:
            scores[i * WARP + lane] = load_fresh(logits, first + i * WARP + lane)
    warp_barrier()
    for k in range(TOP):
        value, number = PICK(scores, chosen)
        if k == 0:
            top = value
        share = np.float32(math.exp(value - top))
        total += share
        warp_barrier()
        if lane == 0:
            chosen[k] = number
            merits[k] = share
        warp_barrier()
    for k in range(lane, TOP, WARP):
        ids[at + k] = chosen[k]
        shares[at + k] = merits[k] / total * share_scale


@device
def key_of(value: Any) -> Any:
    """A word, 1 or more, that is the larger the larger the value is."""
    bits = float_as_bits(value)
    return max(np.uint32(bits ^ ALL_BITS) if bits >= SIGN else np.uint32(bits ^ SIGN), LEAST)


@device
def value_of(key: Any) -> Any:
    """The value that has this key."""
    return bits_as_float(np.uint32(key ^ SIGN) if key >= SIGN else np.uint32(key ^ ALL_BITS))


def best_by_logit(logits, keys, chosen, shares, share_scale):  # type: ignore[no-untyped-def]
    """A token's experts as `choose_by_logit` finds them, from logits that a launch wrote which has ended, into shared memory:
    chosen and shares [TOP], at most 32; keys [EXPERTS] is shared too. By one warp, while others do something else."""
    lane, top = cuda.threadIdx.x % WARP, NOTHING
    for i in range(SLICES):
        if i * WARP + lane < EXPERTS:
            keys[i * WARP + lane] = KEY_OF(settled(logits, i * WARP + lane))
    mine = NOTHING
    for k in range(TOP):
        best, number = NOTHING, np.uint32(EXPERTS)
        for i in range(SLICES):
            if i * WARP + lane < EXPERTS:
                key = keys[i * WARP + lane]
                if key > best:
                    best, number = key, np.uint32(i * WARP + lane)
        highest = largest_of_warp(best)
        winner = least_of_warp(number if best == highest else np.uint32(EXPERTS))
        if number == winner:
            keys[winner] = NOTHING
        if k == 0:
            top = highest
        if lane == k:
            mine = highest
        if lane == 0:
            chosen[k] = np.int32(winner)
    if SHARED:
        share = np.float32(math.exp(VALUE_OF(mine) - VALUE_OF(top))) if lane < TOP else ZERO
        total = warp_sum(share)
        if lane < TOP:
            shares[lane] = share / total * share_scale


def choose_by_score(  # type: ignore[no-untyped-def]
    logits, first, correction, scores, merits, groups, chosen, share_scale, share_epsilon, ids, shares, at
):
    """By any router. scores, merits [EXPERTS] and groups [GROUPS] are shared: what weights are made of, what is compared, and
    that of groups. A softmax without correction is compared by its logits, whose order is its own, without ties."""
    lane = cuda.threadIdx.x % WARP
    top, total = ZERO, ONE
    if not SIGMOID:
        largest, sum_of_lane = LOWEST, ZERO
        for i in range(SLICES):
            if i * WARP + lane < EXPERTS:
                largest = max(largest, load_fresh(logits, first + i * WARP + lane))
        top = warp_max(largest)
        for i in range(SLICES):
            if i * WARP + lane < EXPERTS:
                sum_of_lane += np.float32(math.exp(load_fresh(logits, first + i * WARP + lane) - top))
        total = warp_sum(sum_of_lane)
    for i in range(SLICES):
        expert = i * WARP + lane
        if expert < EXPERTS:
            logit = load_fresh(logits, first + expert)
            score = ONE / (ONE + np.float32(math.exp(-logit))) if SIGMOID else np.float32(math.exp(logit - top)) / total
            scores[expert] = score
            if CORRECTED:
                merits[expert] = score + correction[expert]
            elif SIGMOID:
                merits[expert] = score
            else:
                merits[expert] = logit
    warp_barrier()
    if GROUPS_CHOSEN < GROUPS:
        for g in range(lane, GROUPS, WARP):
            best, second = LOWEST, LOWEST
            for expert in range(g * GROUP_SIZE, (g + 1) * GROUP_SIZE):
                value = merits[expert] if CORRECTED else scores[expert]
                if value > best:
                    best, second = value, best
                elif value > second:
                    second = value
            groups[g] = best + second if GROUP_BEST == 2 else best
        warp_barrier()
        for g in range(lane, GROUPS, WARP):
            ahead = 0
            for other in range(GROUPS):
                if groups[other] > groups[g] or (groups[other] == groups[g] and other < g):
                    ahead += 1
            if ahead >= GROUPS_CHOSEN:
                for expert in range(g * GROUP_SIZE, (g + 1) * GROUP_SIZE):
                    merits[expert] = LOWEST
        warp_barrier()
    for k in range(TOP):
        _, number = PICK(merits, chosen)
        warp_barrier()
        if cuda.threadIdx.x == 0:
            chosen[k] = number
            ids[at + k] = number
        warp_barrier()
    if cuda.threadIdx.x == 0:
        if RENORMALIZED and not SIGMOID:  # the softmax of the chosen logits: scores may be too small for a quotient
            highest, whole = LOWEST, ZERO
            for k in range(TOP):
                highest = max(highest, load_fresh(logits, first + chosen[k]))
            for k in range(TOP):
                share = np.float32(math.exp(load_fresh(logits, first + chosen[k]) - highest))
                whole += share
                shares[at + k] = share
            for k in range(TOP):
                shares[at + k] = shares[at + k] / whole * share_scale
        else:
            whole = ZERO
            for k in range(TOP):
                whole += scores[chosen[k]]
            for k in range(TOP):
                share = scores[chosen[k]]
                if RENORMALIZED:
                    share = share / (whole + share_epsilon)
                shares[at + k] = share * share_scale
