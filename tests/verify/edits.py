"""Copies of checkpoints in which one thing is changed that no tensor tells."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def copy_with(source: Path, target: Path, file: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a folder, whose JSON `file` was edited in place."""
    shutil.copytree(source, target)
    path = target / file
    content = json.loads(path.read_text()) if path.exists() else {}
    edit(content)
    path.write_text(json.dumps(content))
    return target


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the field at this path."""

    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def swap_tokens(one: str, other: str) -> Callable[[dict[str, Any]], None]:
    """An edit of tokenizer.json: two tokens change places."""

    def edit(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    return edit


def swap_merges(one: int, other: int) -> Callable[[dict[str, Any]], None]:
    """An edit of tokenizer.json: two merges change places."""

    def edit(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        merges[one], merges[other] = merges[other], merges[one]

    return edit


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """A small tokenizer.json in the manner of Llama 2: byte fallback, "▁" for a space, <s> before a text."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*first, "ab", "▁a", "▁ab", "▁", "a", "b"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": token, "special": True, **flags} for n, token in enumerate(first[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
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
