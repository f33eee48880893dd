"""Muon for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (https://kellerjordan.github.io/posts/muon/), here for stacks of matrices too:
    each expert's is made orthogonal by itself. The update's size follows the matrix's shape (https://arxiv.org/abs/2502.16982)."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(state["momentum"], group["momentum"]))
                scale = 0.2 * max(parameter.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, roughly, by Newton–Schulz iteration. x [..., rows, columns]."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT.bfloat16() if tall else x.bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = y @ y.mT
        y = a * y + (b * square + c * square @ square) @ y
    return (y.mT if tall else y).to(x.dtype)


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """For the matrices inside layers, and for embeddings, the output layer, routers, norms, biases and sinks."""
    inner: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and "layers." in name and not name.endswith("_bias") and "router" not in name
        (inner if matrix else others).append(parameter)
    decayed = [p for p in others if p.dim() == 2]
    plain = [p for p in others if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    found = [Muon(inner, lr), torch.optim.AdamW(groups, lr=lr / 2, betas=(0.9, 0.95), eps=1e-10)]
    for opt in found:
        for group in opt.param_groups:
            group["highest"] = group["lr"]  # what a schedule scales
    return found
