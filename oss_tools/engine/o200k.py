"""o200k_harmony, the vocabulary of gpt-oss, for checkpoints that come without a tokenizer.json (OpenAI's original layout).

Its ranks are in the package bpe-openai, as OpenAI publishes them; they are checked against the published sha256.
Special tokens and the expression that splits text: https://github.com/openai/harmony (`public_encodings.rs`).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.gguf_splitters import splitter_named
from oss_tools.checkpoints.tokenizers.byte_bpe import byte_letters, halves
from oss_tools.checkpoints.tokenizers.byte_tokenizer import HARMONY
from oss_tools.errors import BadCheckpoint, MissingPackage, how_to_install

SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
BYTES = 3_613_922
VOCABULARY = 201_088  # rows of gpt-oss's embedding
FIRST_SPECIAL, LAST_SPECIAL = 199_998, 201_087


def belongs_to(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config (HF keys) speaks o200k_harmony."""
    return config.get("model_type") == "gpt_oss" and config.get("vocab_size") == VOCABULARY


def ranks_file() -> bytes:
    """o200k_base.tiktoken: a token in base64 and its rank on each line. Raises MissingPackage, BadCheckpoint."""
    package = find_spec("bpe_openai")  # found, not imported: its library is 74 MB
    if package is None or not package.submodule_search_locations:
        raise MissingPackage(
            f"the checkpoint has no tokenizer.json; the vocabulary of gpt-oss comes with {how_to_install('harmony')}"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / "o200k_base.tiktoken.gz"
    try:
        with gzip.open(path) as file:
            content = file.read(BYTES + 1)
    except (OSError, EOFError) as error:
        raise BadCheckpoint(f"{path}: {error}; install bpe-openai again") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise BadCheckpoint(f"{path}: is not the o200k_base that OpenAI published (sha256 {SHA256[:8]}…); install it again")
    return content


def tokenizer_json() -> dict[str, Any]:
    """The content of a tokenizer.json that encodes and decodes as o200k_harmony does. Takes some seconds."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in ranks_file().splitlines())}
    letters = byte_letters()
    name = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [[name[left], name[right]] for token in ranks if len(token) > 1 for left, right in [halves(token, ranks)]]
    names = {number: text for text, number in HARMONY.items()}
    special = [(n, names.get(n, f"<|reserved_{n}|>")) for n in range(FIRST_SPECIAL, LAST_SPECIAL + 1)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    splitter = splitter_named("gpt-4o")
    assert splitter
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in special],
        "pre_tokenizer": splitter.pre_tokenizer(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {name[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
