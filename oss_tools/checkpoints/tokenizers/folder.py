"""The tokenizer of a folder, in the terms of tokenizer.json, whichever files it is kept in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import read_small, read_text
from oss_tools.checkpoints.gguf_splitters import byte_level
from oss_tools.checkpoints.json_files import read_json
from oss_tools.checkpoints.tokenizers.added_tokens import Companions, with_added_tokens
from oss_tools.checkpoints.tokenizers.around_text import adds_of, template_around
from oss_tools.checkpoints.tokenizers.sentencepiece_model import parse_model, tokenizer_of_model
from oss_tools.checkpoints.tokenizers.tekken import tokenizer_of_tekken
from oss_tools.checkpoints.tokenizers.vocab_merges import special_defaults, tokenizer_of_files

MAX_MODEL = 64 << 20
UNREAD = "such a vocabulary is not read; save the tokenizer as tokenizer.json, with transformers"
FOREIGN = re.compile(
    r"[\w.-]+\.tiktoken|spiece\.model|sentencepiece\.bpe\.model|vocab\.txt|rwkv_vocab[\w.-]*|tokenizer\.model\.v[\w.]+"
)


def read_tokenizer(
    folder: Path, tokenizer_config: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any], list[str]]:
    """A folder's tokenizer: (the content of tokenizer.json, that of tokenizer_config.json, remarks); None without a tokenizer.

    Raises BadCheckpoint for a file that cannot be read.
    """
    beside = Companions(
        dict(tokenizer_config), _optional(folder / "added_tokens.json"), _optional(folder / "special_tokens_map.json")
    )
    tokenizer = _optional(folder / "tokenizer.json")
    if tokenizer:
        tokenizer, remarks = with_added_tokens(tokenizer, beside)
        tokenizer, more = _with_its_decoder(tokenizer)
        remarks += [*more, *_of_training(tokenizer), *_of_ends(tokenizer, tokenizer_config)]
        return tokenizer, dict(tokenizer_config), remarks
    return _older(folder, beside)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _with_its_decoder(tokenizer: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Some files (Mistral's from tekken, saved by others) write bytes as letters and have SentencePiece's decoder, which leaves
    the letters as they are: a space would come out as Ġ."""
    if not _holds(tokenizer.get("pre_tokenizer"), "ByteLevel") or not _holds(tokenizer.get("decoder"), "ByteFallback"):
        return tokenizer, []
    remark = "tokenizer.json is byte-level, but its decoder is SentencePiece's; text is decoded as byte-level"
    return {**tokenizer, "decoder": byte_level(use_regex=True)}, [remark]


def _holds(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json, or one in its sequence, is of a type."""
    if not isinstance(part, Mapping):
        return False
    inner = [v for v in part.values() if isinstance(v, list)] if part.get("type") == "Sequence" else []
    return part.get("type") == kind or any(isinstance(p, Mapping) and p.get("type") == kind for v in inner for p in v)


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


# ---- without tokenizer.json -----------------------------------------------------------------------------------------


def _older(folder: Path, beside: Companions) -> tuple[dict[str, Any] | None, dict[str, Any], list[str]]:
    """The tokenizer of the first of the older files that is there."""
    config = dict(beside.config)
    remarks: list[str] = []
    if (folder / "tokenizer.model").exists():
        path = folder / "tokenizer.model"
        model = parse_model(read_small(path, MAX_MODEL), str(path))
        model.dummy_prefix = model.dummy_prefix and config.get("add_prefix_space") is not False
        tokenizer = tokenizer_of_model(model, legacy=config.get("legacy") is not False)
        pieces = model.pieces
        defaults = {name: pieces[n][0] for name, n in model.special.items() if 0 <= n < len(pieces)}
        adds_bos: bool | None = None
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        vocab = read_json(folder / "vocab.json")
        tokenizer, remarks = tokenizer_of_files(vocab, read_text(folder / "merges.txt", MAX_MODEL), config)
        defaults, adds_bos = special_defaults(vocab, config), False
    elif (folder / "tekken.json").exists():
        tokenizer = tokenizer_of_tekken(read_json(folder / "tekken.json"))
        defaults, adds_bos = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, True
    else:
        return None, config, []
    known = {token["content"] for token in tokenizer["added_tokens"]} | set(defaults.values())
    config = {
        **{name: text for name, text in defaults.items() if text in known and config.get(name, "") == ""},
        **_named(config),
    }
    tokenizer, more = with_added_tokens(tokenizer, Companions(config, beside.added, beside.special_map))
    for token in tokenizer[
        "added_tokens"
    ]:  # sought in the text as it came: our normalizer would put a space before their names
        token["normalized"] = False
    if adds_bos is None and "add_bos_token" not in config:
        more.append(
            "neither tokenizer.model nor tokenizer_config.json (add_bos_token) says whether bos goes before a text: none is put "
            "there, as transformers 5 does; transformers 4 and llama.cpp put one"
        )
    _add_ends(tokenizer, config, bool(config.get("add_bos_token", adds_bos)), bool(config.get("add_eos_token")))
    return tokenizer, config, remarks + more


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without special tokens of no text, by which some old files mean the usual one."""
    return {key: value for key, value in config.items() if not (key.endswith("_token") and value == "")}


def _add_ends(tokenizer: dict[str, Any], config: Mapping[str, Any], bos: bool, eos: bool) -> None:
    """A post-processor that puts bos before and eos after a text."""
    numbers = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}

    def text_of(name: str) -> str:
        token = config.get(name)
        return str(token.get("content") if isinstance(token, Mapping) else token)

    before = [t for t in [text_of("bos_token")] if bos and t in numbers]
    after = [t for t in [text_of("eos_token")] if eos and t in numbers]
    if before or after:
        plain = [tokenizer["post_processor"]] if tokenizer["post_processor"] else []
        template = template_around(before, after, numbers)
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [*plain, template]} if plain else template


def unread_vocabulary(names: Iterable[str]) -> str | None:
    """The name among these of a vocabulary that is not read; None if there is none. It travels along with the model."""
    return next((name for name in names if FOREIGN.fullmatch(name)), None)
