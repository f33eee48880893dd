"""The embedded model's mixture of experts in PyTorch: the router, the experts, and tokens sorted by expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oss_tools.models.gpt_oss import GptOssConfig

ALPHA = 1.702  # of the clamped SwiGLU
STRIDE = 128  # the experts' tables grow by so many rows


class Experts(nn.Module):
    """The layer's experts; a token's output is the weighted sum of the outputs of those that it was routed to."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        count, width, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.limit = config.swiglu_limit
        self.gate_up_proj = nn.Parameter(torch.empty(count, width, 2 * inner))  # all of the gate's columns, then all of up's
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(count, 2 * inner))
        self.down_proj = nn.Parameter(torch.empty(count, inner, width))
        self.down_proj_bias = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [tokens, width]; chosen, weights [tokens, experts of a token]."""
        places = Places.of(chosen, self.down_proj.shape[0])
        rows = Dispatch.apply(x, places).view(self.down_proj.shape[0], -1, x.shape[-1])
        inner = SwiGlu.apply(torch.baddbmm(self.gate_up_proj_bias[:, None], rows, self.gate_up_proj), self.limit)
        outputs = torch.baddbmm(self.down_proj_bias[:, None], inner, self.down_proj)
        pairs = Collect.apply(outputs.flatten(0, 1), places).view(*chosen.shape, -1)
        return torch.bmm(weights.to(pairs.dtype)[:, None], pairs).squeeze(1)


@dataclass(frozen=True)
class Places:
    """Where each pair of token and expert lies in a table with as many rows for every expert.

    That number is a multiple of STRIDE: products of few shapes, because each new one costs the library a compilation.

    Attributes:
        row: of each pair [pairs]; a token's pairs follow each other.
        pair: of each row [rows]; one past the last where the row is empty.
        each: experts of a token.
    """

    row: Tensor
    pair: Tensor
    each: int

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Places:
        expert = chosen.flatten()
        counts = torch.bincount(expert, minlength=experts)
        capacity = -(-int(counts.max()) // STRIDE) * STRIDE
        order = expert.argsort(stable=True)
        within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert[order]]
        row = torch.empty_like(order)
        row[order] = expert[order] * capacity + within
        pair = torch.full((experts * capacity,), len(order))
        pair[row] = torch.arange(len(order))
        return cls(row, pair, chosen.shape[1])


class Dispatch(torch.autograd.Function):
    """The table's rows from the tokens' x [tokens, width]; gathers both ways, which is quicker than adding up by index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return functional.pad(x, (0, 0, 0, 1))[places.pair // places.each]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.places.row].view(-1, ctx.places.each, gradient.shape[-1]).sum(dim=1), None


class Collect(torch.autograd.Function):
    """The pairs' rows [pairs, width] out of the table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return table[places.row]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return functional.pad(gradient, (0, 0, 0, 1))[ctx.places.pair], None


class MixtureOfExperts(nn.Module):
    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.router = nn.Linear(config.hidden_size, config.num_local_experts)
        self.experts = Experts(config)
        self.each = config.num_experts_per_tok

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [tokens, width]; returns the output and the load-balancing loss (https://arxiv.org/abs/2101.03961, eq. 4)."""
        logits = self.router(x).float()
        top = logits.topk(self.each, dim=-1)
        shares = torch.bincount(top.indices.flatten(), minlength=logits.shape[1]) / top.indices.numel()
        balance = logits.shape[1] * (shares * logits.softmax(dim=-1).mean(dim=0)).sum()
        return self.experts(x, top.indices, top.values.softmax(dim=-1)), balance


class SwiGlu(torch.autograd.Function):
    """gate · sigmoid(1.702 · gate) · (up + 1), both clamped; the first half of the last axis is the gate, the second is up.

    The clamps pass no gradient on, as in PyTorch."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, limit: float) -> Tensor:
        gate, up = inner.chunk(2, dim=-1)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit).add_(1)
        squash = torch.sigmoid(ALPHA * gate)
        ctx.save_for_backward(gate, up, squash)
        ctx.limit = limit
        return (gate * squash).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gate, up, squash = ctx.saved_tensors
        slope = torch.addcmul(squash, gate * squash, 1 - squash, value=ALPHA)  # of gate · sigmoid(1.702 · gate)
        slope.mul_(up).mul_(gradient).mul_(gate < ctx.limit)
        rise = (gate * squash).mul_(gradient).mul_((up - 1).abs_() < ctx.limit)
        return torch.cat([slope, rise], dim=-1), None
