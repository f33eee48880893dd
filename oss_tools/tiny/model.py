"""The embedded model in PyTorch, for training: gpt-oss's published design (https://arxiv.org/abs/2508.10925), written for
small batches on a CPU. Parameter names and layouts are those of its Hugging Face checkpoint, so that saving is no conversion.

Matrix products run in bfloat16, everything between them in float32; `oss_tools.models.gpt_oss` is the same model for inference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.operations import Rope
from oss_tools.models.rope import Scaling
from oss_tools.tiny.experts import MixtureOfExperts

# Of the induction heads in the first weights: how sharply the token before is looked at, how strongly a note is matched, the
# logit of finding none, and how much of a copied token reaches the output
PREVIOUS, MATCH, SINK, COPY = 32.0, 4.5, 8.0, 0.2

# 2.9 million parameters, 1.6 million of them used for a token. rope_theta and the original context are chosen so that the
# ends of YaRN's ramp fall on whole dimensions (3.0002 and 7.9997): programs that round them compute the same model.
CONFIG = GptOssConfig(
    num_hidden_layers=4,
    num_local_experts=8,
    num_experts_per_tok=4,
    hidden_size=160,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=2048,
    sliding_window=128,
    max_position_embeddings=6436,
    rope_theta=65600.0,
    rope=Scaling("yarn", 4.0, 1609, truncate=False),
)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with a learned sink for each head: a logit that takes part in the softmax and has no value."""

    def __init__(self, config: GptOssConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.heads, self.groups, self.size = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.window = None if layer % 2 else c.sliding_window
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.size)
        self.k_proj = nn.Linear(c.hidden_size, self.groups * self.size)
        self.v_proj = nn.Linear(c.hidden_size, self.groups * self.size)
        self.o_proj = nn.Linear(self.heads * self.size, c.hidden_size)
        self.sinks = nn.Parameter(torch.zeros(self.heads))

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """x [sequences, tokens, width]; turns: cosines and sines [tokens, size / 2]."""
        sequences, tokens, _ = x.shape
        query = rotate(self.q_proj(x).view(sequences, tokens, self.heads, self.size), turns).transpose(1, 2)
        key = rotate(self.k_proj(x).view(sequences, tokens, self.groups, self.size), turns).transpose(1, 2)
        value = self.v_proj(x).view(sequences, tokens, self.groups, self.size).transpose(1, 2)
        mixed = self._attend(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(sequences, tokens, -1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [sequences, heads, tokens, size]; key, value [sequences, groups, tokens, size]. A group's heads lie one after
        the other, so that one product serves them all."""
        sequences, _, tokens, size = query.shape
        query = query.reshape(sequences, self.groups, -1, size)
        logits = (query @ key.transpose(2, 3)).view(sequences, self.heads, tokens, tokens)
        weights = AttentionWeights.apply(logits, self.sinks, self._unseen(tokens), size**-0.5)
        return (weights.view(sequences, self.groups, -1, tokens) @ value).view(sequences, self.heads, tokens, size)

    def _unseen(self, tokens: int) -> Tensor:
        """−inf where a query does not see a key: later ones, and on sliding layers those outside its window."""
        at = torch.arange(tokens)
        back = at[:, None] - at
        unseen = back < 0
        if self.window is not None:
            unseen |= back >= self.window
        return torch.zeros(tokens, tokens).masked_fill_(unseen, -torch.inf)


class AttentionWeights(torch.autograd.Function):
    """The softmax over a query's keys and its head's sink, without the sink's share."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sinks: Tensor, unseen: Tensor, scale: float) -> Tensor:
        """logits bfloat16 [sequences, heads, tokens, tokens]; the weights alike."""
        scaled = torch.add(unseen, logits, alpha=scale)
        total = torch.logaddexp(scaled.logsumexp(dim=-1, keepdim=True), sinks.view(-1, 1, 1))
        weights = scaled.sub_(total).exp_().to(logits.dtype)
        ctx.save_for_backward(weights)
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        weighted = gradient.float() * weights
        mean = weighted.sum(dim=-1, keepdim=True)
        sink = 1 - weights.sum(dim=-1, dtype=torch.float32)
        grad = weighted.addcmul_(weights.float(), mean, value=-1).mul_(ctx.scale)
        return grad.to(weights.dtype), -(sink * mean.squeeze(-1)).sum(dim=(0, 2)), None, None


class Layer(nn.Module):
    def __init__(self, config: GptOssConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MixtureOfExperts(config)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), turns)
        out, balance = self.mlp(self.post_attention_layernorm(x).flatten(0, 1))
        return x + out.view_as(x), balance


class Trunk(nn.Module):
    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class TinyModel(nn.Module):
    """The whole model; `forward` gives logits."""

    def __init__(self, config: GptOssConfig = CONFIG) -> None:
        super().__init__()
        self.config, self.model = config, Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rope: Rope = GptOss(config).rope()
        self._initialize()

    def _initialize(self) -> None:
        """Matrices with standard deviation width^-1/2, small ones where they write to the residual stream."""
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "sinks")):
                nn.init.zeros_(parameter)
            elif parameter.dim() >= 2:
                fan_in = parameter.shape[1] if parameter.dim() == 3 else parameter.shape[-1]
                writes = name.endswith(("o_proj.weight", "down_proj"))
                nn.init.normal_(parameter, std=1.0 if "embed" in name else (0.1 if writes else 1.0) * fan_in**-0.5)
        self._seed_induction()

    @torch.no_grad()
    def _seed_induction(self) -> None:
        """Builds induction heads (https://arxiv.org/abs/2209.11895) into the first weights: an hour is too short to find them.

        The first layer's first head looks at the token before, by position alone, and notes which it was. The first heads of
        the full-attention layers look for notes of the present token, and copy the token that they stand beside.
        """
        c, half = self.config, self.config.head_dim // 2
        width, notes = c.hidden_size, half  # the dimensions that turn slowly can be compared at any distance
        slow = torch.cat([torch.arange(half // 2, half), torch.arange(half // 2, half) + half])
        read, note, value, write = (torch.linalg.qr(torch.randn(width, n)).Q for n in (notes, notes, c.head_dim, c.head_dim))
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        before = attentions[0]
        before.k_proj.weight[: c.head_dim], before.q_proj.weight[: c.head_dim] = 0, 0
        quick = torch.from_numpy(self._rope.frequencies[:4])
        before.q_proj.bias[:4] = PREVIOUS**0.5
        before.k_proj.bias[:4], before.k_proj.bias[half : half + 4] = (
            PREVIOUS**0.5 * quick.cos(),
            PREVIOUS**0.5 * quick.sin(),
        )
        before.v_proj.weight[:notes] = read.T
        before.o_proj.weight[:, : c.head_dim] = 0
        before.o_proj.weight[:, :notes] = note
        for match in attentions[1::2]:
            match.q_proj.weight[: c.head_dim], match.k_proj.weight[: c.head_dim] = 0, 0
            match.q_proj.weight[slow], match.k_proj.weight[slow] = MATCH**0.5 * read.T, MATCH**0.5 * note.T
            match.v_proj.weight[: c.head_dim] = value.T
            match.o_proj.weight[:, : c.head_dim] = write
            match.sinks[0] = SINK
        self.lm_head.weight.mul_(0.2).addmm_(self.model.embed_tokens.weight @ value, write.T, alpha=COPY)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [sequences, tokens]; returns the final hidden states [sequences, tokens, width] and the balancing loss."""
        angles = torch.outer(torch.arange(tokens.shape[1], dtype=torch.float32), torch.from_numpy(self._rope.frequencies))
        turns = (angles.cos() * self._rope.scale, angles.sin() * self._rope.scale)
        x, total = self.model.embed_tokens(tokens), torch.zeros(())
        for layer in self.model.layers:
            x, balance = layer(x, turns)
            total = total + balance
        return self.model.norm(x), total / len(self.model.layers)


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """x [sequences, tokens, heads, size]: dimension i turns with dimension i + size / 2."""
    cosines, sines = (t[:, None].to(x.dtype) for t in turns)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
