"""The tokens that a tokenizer.json puts around a text: its post-processor's templates, read and made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def adds_of(tokenizer: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the post_processor of a tokenizer.json puts tokens before and after a text."""
    before = after = False
    for template in templates_of(tokenizer):
        pieces = template.get("single")
        pieces = pieces if isinstance(pieces, list) else []
        text = next((n for n, piece in enumerate(pieces) if isinstance(piece, Mapping) and "Sequence" in piece), 0)
        before, after = before or text > 0, after or text < len(pieces) - 1
    return before, after


def templates_of(tokenizer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The templates in the post_processor of a tokenizer.json."""
    processor = tokenizer.get("post_processor")
    listed = processor.get("processors", [processor]) if isinstance(processor, Mapping) else []
    processors = listed if isinstance(listed, list) else []
    return [p for p in processors if isinstance(p, Mapping) and p.get("type") == "TemplateProcessing"]


def template_around(before: list[str], after: list[str], numbers: Mapping[str, int]) -> dict[str, Any]:
    """The TemplateProcessing of a tokenizer.json that puts these tokens before and after each text."""

    def around(letter: str, sequence: int) -> list[dict[str, Any]]:
        ends = [[{"SpecialToken": {"id": token, "type_id": sequence}} for token in tokens] for tokens in (before, after)]
        return [*ends[0], {"Sequence": {"id": letter, "type_id": sequence}}, *ends[1]]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {token: {"id": token, "ids": [numbers[token]], "tokens": [token]} for token in before + after},
    }
