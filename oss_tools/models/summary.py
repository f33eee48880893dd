"""What a checkpoint is, in figures: parameters, bytes by format and role, tokenizer, configuration. Headers only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oss_tools.models.checkpoint import Checkpoint, Entry

HIGHLIGHTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "rope_theta",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Share:
    """Tensors that have something in common (a format, a role): how many, their values, their bytes as stored."""

    name: str
    tensors: int
    parameters: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters


@dataclass(frozen=True)
class TensorFacts:
    """One tensor: canonical name, role, shape, format(s) as stored, bytes."""

    name: str
    role: str
    shape: tuple[int, ...]
    format: str
    nbytes: int


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer: its model (BPE, Unigram, …), how many tokens it knows, how many of them are special."""

    kind: str
    vocabulary: int
    special: int


@dataclass(frozen=True)
class Summary:
    """A checkpoint in figures. Parameters count values once; bytes are those of the stored tensors."""

    path: Path
    container: str
    model_type: str
    parameters: int
    active_parameters: int
    nbytes: int
    by_format: tuple[Share, ...]
    by_role: tuple[Share, ...]
    tensors: tuple[TensorFacts, ...]
    config: dict[str, Any]
    tokenizer: TokenizerFacts | None
    chat_template: bool
    files: tuple[tuple[str, int], ...]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters


def summarize(checkpoint: Checkpoint) -> Summary:
    """The figures of an open checkpoint."""
    by_format: dict[str, Share] = {}
    by_role: dict[str, Share] = {}
    tensors = []
    for entry in checkpoint.entries.values():
        parts = _parts(checkpoint, entry)
        nbytes = sum(part_bytes for _, _, part_bytes in parts)
        _count(by_role, entry.spec.role, entry.spec.size, nbytes)
        for format, parameters, part_bytes in parts:
            _count(by_format, format, parameters, part_bytes)
        formats = "+".join(dict.fromkeys(format for format, _, _ in parts))
        tensors.append(TensorFacts(entry.name, entry.spec.role, entry.spec.shape, formats, nbytes))
    metadata = checkpoint.metadata()
    return Summary(
        path=checkpoint.path,
        container=checkpoint.container,
        model_type=checkpoint.architecture.model_type,
        parameters=checkpoint.parameters,
        active_parameters=checkpoint.architecture.active_parameters(),
        nbytes=sum(t.nbytes for t in tensors),
        by_format=_largest_first(by_format),
        by_role=_largest_first(by_role),
        tensors=tuple(tensors),
        config=_highlights(metadata.config),
        tokenizer=_tokenizer(metadata.tokenizer),
        chat_template=bool(metadata.chat_template or metadata.tokenizer_config.get("chat_template")),
        files=tuple((file.name, file.stat().st_size) for file in checkpoint.reader.files()),
    )


def _parts(checkpoint: Checkpoint, entry: Entry) -> list[tuple[str, int, int]]:
    """(format, values, bytes) of each stretch of a tensor; one, unless the container splits it."""
    matrices, _, columns = entry.spec.matrices
    parts = []
    for placement in entry.placements:
        stored = checkpoint.reader.tensors[placement.stored].format
        rows = matrices * placement.count
        nbytes = rows * columns * stored.bytes_per_row(1) if stored.is_float else rows * stored.bytes_per_row(columns)
        parts.append((stored.name, rows * columns, nbytes))
    return parts


def _count(shares: dict[str, Share], name: str, parameters: int, nbytes: int) -> None:
    old = shares.get(name, Share(name, 0, 0, 0))
    shares[name] = replace(old, tensors=old.tensors + 1, parameters=old.parameters + parameters, nbytes=old.nbytes + nbytes)


def _largest_first(shares: dict[str, Share]) -> tuple[Share, ...]:
    return tuple(sorted(shares.values(), key=lambda share: -share.nbytes))


def _highlights(config: dict[str, Any]) -> dict[str, Any]:
    shown = {key: config[key] for key in HIGHLIGHTS if config.get(key) is not None}
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict):
        shown.setdefault("rope_theta", rope.get("rope_theta"))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            shown["rope_scaling"] = f"{kind}, factor {rope.get('factor')}"
    return shown


def _tokenizer(tokenizer: dict[str, Any] | None) -> TokenizerFacts | None:
    if not tokenizer:
        return None
    model, added = tokenizer.get("model") or {}, tokenizer.get("added_tokens") or []
    vocabulary = model.get("vocab") or {}
    known = set(vocabulary) if isinstance(vocabulary, dict) else {piece[0] for piece in vocabulary}
    known |= {token["content"] for token in added}
    special = sum(bool(token.get("special")) for token in added)
    return TokenizerFacts(str(model.get("type", "unknown")), len(known), special)
