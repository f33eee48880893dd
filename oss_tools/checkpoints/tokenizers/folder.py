"""The tokenizer of a folder, in the terms of tokenizer.json, whichever files it is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import read_json
from oss_tools.checkpoints.tokenizers.added_tokens import Companions, adds_of, with_added_tokens


def read_tokenizer(
    folder: Path, tokenizer_config: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any], list[str]]:
    """A folder's tokenizer: (the content of tokenizer.json, that of tokenizer_config.json, remarks); None without a tokenizer.

    Raises BadCheckpoint for a file that cannot be read.
    """

    def optional(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).exists() else {}

    tokenizer, config = optional("tokenizer.json"), dict(tokenizer_config)
    if not tokenizer:
        return None, config, []
    beside = Companions(config, optional("added_tokens.json"), optional("special_tokens_map.json"))
    tokenizer, remarks = with_added_tokens(tokenizer, beside)
    return tokenizer, config, remarks + _of_training(tokenizer) + _of_ends(tokenizer, config)


def _of_training(tokenizer: Mapping[str, Any]) -> list[str]:
    model = tokenizer.get("model")
    dropout = model.get("dropout") if isinstance(model, Mapping) else None
    if not dropout:
        return []
    return [f"tokenizer.json leaves out merges by chance (dropout {dropout}), for training; here none is left out"]


def _of_ends(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Where tokenizer_config.json and tokenizer.json say different things of the tokens around a text."""
    remarks = []
    for name, adds, place in zip(("bos", "eos"), adds_of(tokenizer), ("before", "after"), strict=True):
        wanted = config.get(f"add_{name}_token")
        if isinstance(wanted, bool) and wanted != adds:
            does = f"puts {'a' if adds else 'no'} token {place} a text"
            remarks.append(
                f"tokenizer_config.json says add_{name}_token {str(wanted).lower()}, but tokenizer.json {does}; tokenizer.json "
                "is followed, as transformers 5 does"
            )
    return remarks
