"""What lies beside the tensors of a Hugging Face folder: tokenizer, chat template, licence, model card; never code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from oss_tools.checkpoints import templates
from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.files import is_plain_name, read_small
from oss_tools.checkpoints.json_files import json_bytes, read_json
from oss_tools.checkpoints.tokenizers.folder import FOREIGN, read_tokenizer
from oss_tools.errors import BadCheckpoint

MAX_CONFIG = 16 << 20
MAX_COMPANION = 32 << 20  # Mistral's tekken.json has 19 MB
MAX_COMPANIONS = 64
MAX_CARRIED = 128 << 20  # bytes of all of them together
MAX_CARD = 16 << 10  # bytes of a model card in which its front matter must end

# Parsed into fields of Metadata, and written from there.
PARSED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    templates.FILE,
    templates.OLD_FILE,
)
CARRIED = re.compile(
    r"((LICEN[CS]E|NOTICE|README|USAGE_POLICY|COPYING|AUTHORS)[\w.-]*|"
    r"special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|tokenizer\.model|tekken\.json|"
    + FOREIGN.pattern
    + ")",
    re.IGNORECASE,
)
REFUSED = (".py", ".bin", ".pt", ".pth", ".pickle", ".pkl", ".ckpt", ".safetensors", ".index.json", ".gguf", ".so", ".sh")


def read_metadata(folder: Path, config: dict[str, Any]) -> Metadata:
    """A folder's companions around an HF config. Raises BadCheckpoint if one cannot be parsed."""

    def optional(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).exists() else {}

    tokenizer, tokenizer_config, of_tokenizer = read_tokenizer(folder, optional("tokenizer_config.json"))
    named, of_templates = templates.of_folder(folder, tokenizer_config)
    tokenizer_config.pop(templates.FIELD, None)
    files = _carried_files(folder)
    return Metadata(
        config={key: value for key, value in config.items() if key != "quantization_config"},
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        generation_config=optional("generation_config.json"),
        **templates.fields(named),
        general=_general(folder, files.get("README.md", b"")),
        files=files,
        remarks=(*of_tokenizer, *of_templates),
    )


def _carried_files(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path in sorted(folder.iterdir()):
        wanted = CARRIED.fullmatch(path.name) and not path.name.lower().endswith(REFUSED)
        room = min(MAX_COMPANION, MAX_CARRIED - sum(map(len, files.values())))
        if wanted and path.is_file() and path.stat().st_size <= room and len(files) < MAX_COMPANIONS:
            files[path.name] = read_small(path, MAX_COMPANION)
    return files


def _general(folder: Path, card: bytes) -> dict[str, Any]:
    """Facts in the terms of GGUF's `general.*` keys, from the front matter of the model card."""
    general: dict[str, Any] = {}
    if not re.fullmatch(r"[0-9a-f]{40}", folder.name):  # a snapshot of the hub's cache, named by its commit
        general["name"] = folder.resolve().name.encode("utf-8", "replace").decode()
    facts = _front_matter(card[:MAX_CARD].decode("utf-8", "replace"))
    for key, ours in (("license", "license"), ("license_link", "license.link"), ("pipeline_tag", "pipeline_tag")):
        if isinstance(facts.get(key), str):
            general[ours] = facts[key]
    for key, ours in (("language", "languages"), ("tags", "tags")):
        values = facts.get(key)
        values = [values] if isinstance(values, str) else values
        if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
            general[ours] = values
    return general


def _front_matter(card: str) -> dict[str, Any]:
    """The YAML between the two `---` lines that begin a model card; {} if there is none that can be read."""
    from oss_tools.checkpoints.yaml_files import parse_yaml

    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", card, re.DOTALL)
    try:
        facts = parse_yaml(found[1], texts_only=True) if found else {}
    except ValueError:  # a card is free text: facts in it are a bonus
        facts = {}
    return facts if isinstance(facts, dict) else {}


def companion_files(metadata: Metadata) -> dict[str, bytes]:
    """The companions as files: name -> content. config.json is not among them. Raises BadCheckpoint for a bad name."""
    files: dict[str, bytes] = {}
    for name, content in metadata.files.items():
        if not is_plain_name(name) or name in PARSED or name.lower().endswith(REFUSED):
            raise BadCheckpoint(f"companion file {name[:80]!r} cannot be written: its name is reserved or leaves the folder")
        files[name] = content
    tokenizer_config = dict(metadata.tokenizer_config)
    files |= templates.files_of(metadata, tokenizer_config)
    for name, parsed in (
        ("tokenizer.json", metadata.tokenizer),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", metadata.generation_config),
    ):
        if parsed:
            files[name] = json_bytes(parsed)
    return files
