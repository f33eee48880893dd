"""What a checkpoint is, in figures: parameters, bytes by format and role, tokenizer, configuration. Headers only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints import templates
from oss_tools.checkpoints.files import read_text
from oss_tools.checkpoints.json_files import MAX_JSON, check_values, read_json
from oss_tools.errors import BadCheckpoint
from oss_tools.models.base import READY
from oss_tools.models.checkpoint import Checkpoint
from oss_tools.models.entries import Entry

HIGHLIGHTS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "rope_theta",
    "tie_word_embeddings",
)
GGUF_CONTROL = 3  # the type of special tokens in GGUF (gguf.TokenType.CONTROL)
GGUF_KINDS = {"gpt2": "BPE", "llama": "SentencePiece"}


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
    chat_templates: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    remarks: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.parameters


def summarize(checkpoint: Checkpoint) -> Summary:
    """The figures of an open checkpoint."""
    by_format: dict[str, Share] = {}
    by_role: dict[str, Share] = {}
    tensors = []
    for entry in checkpoint.entries.values():
        parts = _by_format(checkpoint, entry)
        nbytes = sum(part_bytes for _, part_bytes in parts.values())
        _count(by_role, entry.spec.role, entry.spec.size, nbytes)
        for format, (parameters, part_bytes) in parts.items():
            _count(by_format, format, parameters, part_bytes)
        tensors.append(TensorFacts(entry.name, entry.spec.role, entry.spec.shape, "+".join(parts), nbytes))
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
        config=_highlights(checkpoint.architecture.hf_config(), checkpoint.architecture.computation()),
        tokenizer=_tokenizer(checkpoint),
        chat_templates=_chat_templates(checkpoint),
        files=tuple((file.name, file.stat().st_size) for file in checkpoint.reader.files()),
        remarks=tuple(checkpoint.remarks),
    )


def _by_format(checkpoint: Checkpoint, entry: Entry) -> dict[str, tuple[int, int]]:
    """Values and bytes of a tensor in each format that it is stored in; one, unless the container splits it."""
    matrices, _, columns = entry.spec.matrices
    found: dict[str, tuple[int, int]] = {}
    for placement in entry.placements:
        stored = checkpoint.reader.tensors[placement.stored].format
        rows = (matrices if placement.matrix is None else 1) * placement.count
        nbytes = rows * columns * stored.bytes_per_row(1) if stored.is_float else rows * stored.bytes_per_row(columns)
        values, total = found.get(stored.name, (0, 0))
        found[stored.name] = (values + rows * columns, total + nbytes)
    return found


def _count(shares: dict[str, Share], name: str, parameters: int, nbytes: int) -> None:
    old = shares.get(name, Share(name, 0, 0, 0))
    shares[name] = replace(old, tensors=old.tensors + 1, parameters=old.parameters + parameters, nbytes=old.nbytes + nbytes)


def _largest_first(shares: dict[str, Share]) -> tuple[Share, ...]:
    return tuple(sorted(shares.values(), key=lambda share: -share.nbytes))


def _highlights(config: dict[str, Any], computation: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in computation.items() if isinstance(value, int | float | str)}
    shown = {key: value for key in HIGHLIGHTS if (value := config.get(key, plain.get(key))) is not None}
    if "num_experts" in shown:  # one number under two names
        shown.pop("num_local_experts", None)
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict):
        shown.setdefault("rope_theta", rope.get("rope_theta"))
    _, _, scaling = str(computation.get("rope", "")).partition(", ")  # behind theta
    if scaling:
        shown["rope_scaling"] = scaling
    return shown


def _tokenizer(checkpoint: Checkpoint) -> TokenizerFacts | None:
    raw = checkpoint.reader.raw_config
    if checkpoint.container == "gguf":
        if "tokenizer.ggml.tokens" not in raw:
            return None
        kind = str(raw.get("tokenizer.ggml.model"))
        control = int(np.count_nonzero(np.asarray(raw.get("tokenizer.ggml.token_type", ())) == GGUF_CONTROL))
        return TokenizerFacts(GGUF_KINDS.get(kind, kind), len(raw["tokenizer.ggml.tokens"]), control)
    file = _folder(checkpoint) / "tokenizer.json"
    if checkpoint.container != READY and file.exists():
        return tokenizer_facts(read_text(file, MAX_JSON), file)
    content = checkpoint.metadata().tokenizer  # of older files
    return tokenizer_facts(json.dumps(content), _folder(checkpoint)) if content else None


def tokenizer_facts(text: str, file: Path) -> TokenizerFacts:
    """What a tokenizer.json says, without parsing its merges, which are most of it. Raises BadCheckpoint."""
    check_values(text, str(file))
    model = re.search(r'"model"\s*:\s*\{', text)
    kind = re.compile(r'"type"\s*:\s*"(\w+)"').search(text, model.end()) if model else None
    vocabulary, added = _value_of("vocab", text, file), _value_of("added_tokens", text, file) or []
    try:
        known = set(vocabulary or ()) if not isinstance(vocabulary, list) else {piece[0] for piece in vocabulary}
        known |= {token["content"] for token in added}
        special = sum(bool(token.get("special")) for token in added)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadCheckpoint(f"{file}: not a tokenizer: {error!r}") from None
    return TokenizerFacts(kind[1] if kind else "unknown", len(known), special)


def _value_of(key: str, text: str, file: Path) -> Any:
    """The first object or array under this key; a token named so has a number under it."""
    found = re.search(rf'"{key}"\s*:\s*(?=[{{\[])', text)
    try:
        return json.JSONDecoder().raw_decode(text, found.end())[0] if found else None
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file}: cannot be parsed: {error}") from None


def _chat_templates(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.container == "gguf":
        return tuple(templates.of_gguf(checkpoint.reader.raw_config, str(checkpoint.path)))
    if checkpoint.container == READY:
        return tuple(templates.by_name(checkpoint.metadata()))
    folder = _folder(checkpoint)
    config = folder / "tokenizer_config.json"
    return tuple(templates.of_folder(folder, read_json(config) if config.exists() else {})[0])


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
