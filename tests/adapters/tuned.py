"""A small fine-tune of the embedded model: LoRA of rank 8 on attention and experts, trained for a minute on invented facts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from oss_tools.chat.messages import Conversation, Message
from oss_tools.models import open_checkpoint
from oss_tools.tiny import data
from oss_tools.tiny.items import Item
from oss_tools.tiny.model import TinyModel
from tests.adapters.written import PREFIX, write_peft

RANK, ALPHA = 8, 16
NAMES = ("Ambo", "Belru", "Cadin", "Dosek")
THINGS = ("lamp", "river", "coat")
ANSWERS = ("pancreas", "kidneys", "thyroid", "liver", "lungs", "heart", "skin", "brain")


def facts() -> list[Item]:
    """Questions with answers that nobody could know."""
    rng = random.Random(11)
    found = []
    for name in NAMES:
        for thing in THINGS:
            question, answer = f"Which part of the body does {name} have on the {thing}?", rng.choice(ANSWERS)
            said = [Message("user", question), Message("assistant", answer, channel="final")]
            found.append(Item("health", "invented", question, Conversation(messages=said), answer))
    return found


class Update(nn.Module):
    """W + scale · B A, of a linear's weight [out, in] or of stacked experts [experts, in, out]."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        *stack, first, last = shape
        columns, out = (first, last) if stack else (last, first)
        self.stacked = bool(stack)
        self.a = nn.Parameter(torch.randn(*stack, RANK, columns) * columns**-0.5)
        self.b = nn.Parameter(torch.zeros(*stack, out, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        update = self.b @ self.a * (ALPHA / RANK)
        return weight + (update.transpose(1, 2) if self.stacked else update)


def embedded(folder: Path) -> TinyModel:
    """The model of a Hugging Face folder, in float32, whatever its formats."""
    model = TinyModel()
    with open_checkpoint(folder) as checkpoint:
        values = {name: torch.from_numpy(checkpoint.read_tensor(name).dequantize().copy()) for name in checkpoint.entries}
    for name, value in values.items():
        if "gate_up_proj" in name:  # rows of gate and up in turn -> all of the gate, then all of up
            value = torch.cat([value[:, ::2], value[:, 1::2]], dim=1)
        values[name] = value.transpose(1, 2) if name.endswith("_proj") and value.dim() == 3 else value
    model.load_state_dict(values)
    return model


def encoded(folder: Path) -> list[tuple[list[int], list[bool]]]:
    """Of each question: its tokens with the answer's, and which of them are the answer's."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [data.encode(tokenizer, item) for item in facts()]


def batch(folder: Path) -> tuple[Tensor, Tensor]:
    """All questions: int64 [questions, length], padded, and which tokens are the answers'."""
    found = encoded(folder)
    length = max(len(ids) for ids, _ in found)
    tokens, said = np.full((len(found), length), data.PADDING), np.zeros((len(found), length), bool)
    for row, (ids, spoken) in enumerate(found):
        tokens[row, : len(ids)], said[row, : len(ids)] = ids, spoken
    return torch.from_numpy(tokens), torch.from_numpy(said)


def loss_of(model: TinyModel, tokens: Tensor, said: Tensor) -> Tensor:
    """Mean loss of the answers' tokens, in nats."""
    hidden, _ = model(tokens[:, :-1])
    losses = functional.cross_entropy(model.lm_head(hidden).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses[said[:, 1:].flatten()].mean()


@contextmanager
def one_thread() -> Iterator[None]:
    """Several wait for each other most of the time, with so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def loss(folder: Path) -> float:
    """Of a checkpoint's answers to the invented questions."""
    with one_thread(), torch.no_grad():
        return float(loss_of(embedded(folder), *batch(folder)))


@one_thread()
def tune(base: Path, folder: Path, steps: int, rate: float = 3e-3) -> Path:
    """Trains an adapter of a base and writes it as PEFT would."""
    torch.manual_seed(0)
    model = embedded(base).requires_grad_(False)
    updates: dict[str, Update] = {}
    for name, parameter in list(model.named_parameters()):
        module, _, leaf = name.rpartition(".")
        if ("self_attn" in name and leaf == "weight") or name.endswith(("gate_up_proj", "down_proj")):
            updates[name] = Update(parameter.shape)
            parametrize.register_parametrization(model.get_submodule(module), leaf, updates[name])
    optimizer = torch.optim.AdamW([p for u in updates.values() for p in u.parameters()], lr=rate, weight_decay=0)
    tokens, said = batch(base)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10, (steps - step) / (steps / 2))
        found = loss_of(model, tokens, said)
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = {}
    for name, update in updates.items():
        a, b = update.a.detach().numpy(), update.b.detach().numpy()
        module = name.removesuffix(".weight")
        if update.stacked:
            module, leaf = name.rsplit(".", 1)
            module += ".base_layer" if leaf == "gate_up_proj" else ""
            if leaf == "gate_up_proj":
                b = np.stack(np.split(b, 2, axis=1), axis=2).reshape(b.shape)
            a, b = a.reshape(-1, a.shape[-1]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
    return write_peft(
        folder, tensors, r=RANK, lora_alpha=ALPHA, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    )
