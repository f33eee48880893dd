"""Small tokenizers in the manner of GPT-2's and Llama 2's, as tokenizer.json has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oss_tools.checkpoints import Contents, Metadata
from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.gguf_splitters import byte_level
from oss_tools.checkpoints.gguf_writer import GgufWriter

CONFIG = {"general.architecture": "llama", "llama.block_count": 1}


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def added(number: int, content: str, special: bool = True) -> dict[str, Any]:
    return {"id": number, "content": content, **FLAGS, "special": special}


def byte_level_json(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json in the manner of GPT-2, small."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4}, "merges": [["a", "b"], ["Ġ", "a"]]}
    return {
        "version": "1.0",
        "added_tokens": [added(5, "<|start|>"), added(6, "<|end|>"), added(7, "<mark>", special=False)],
        "normalizer": None,
        "pre_tokenizer": byte_level(use_regex=True),
        "post_processor": None,
        "decoder": byte_level(use_regex=True),
        "model": model,
        **changes,
    }


def metadata(tokenizer: dict[str, Any] | None = None, size: int = 10, **tokenizer_config: Any) -> Metadata:
    return Metadata({"vocab_size": size}, tokenizer or byte_level_json(), tokenizer_config)


def through_gguf(folder: Path, source: Metadata) -> Metadata:
    """Written to a GGUF file without tensors, and read back."""
    writer = GgufWriter(folder, Contents("a", [], source, CONFIG))
    (path,) = writer.finish()
    writer.close()
    with GgufReader(path) as reader:
        return reader.metadata(dict(source.config))


def template(*ends: str) -> dict[str, Any]:
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}} if e == "A" else {"SpecialToken": {"id": e, "type_id": 0}} for e in ends
    ]
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {}}


def sentencepiece_json(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json in the manner of Llama 2, small."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*first, "ab", "▁a", "▁ab", "▁", "a", "b"]
    prepend = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return {
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": prepend},
        "pre_tokenizer": None,
        "post_processor": template("<s>", "A"),
        "decoder": None,
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": "<unk>",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [["a", "b"], ["▁", "a"], ["▁", "ab"]],
        },
        **changes,
    }
