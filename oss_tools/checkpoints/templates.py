"""Chat templates, one or several by name, in every place where checkpoints keep them.

A folder: chat_template.jinja and additional_chat_templates/NAME.jinja; or `chat_template` in tokenizer_config.json, which is a
text or a list of {"name", "template"}; or chat_template.json of older processors. Files go before tokenizer_config.json, as in
transformers (`PreTrainedTokenizerBase.from_pretrained`). GGUF: `tokenizer.chat_template`, and `tokenizer.chat_templates` with
the NAMEs of `tokenizer.chat_template.NAME`, as gguf-py writes them (`GGUFWriter.add_chat_template`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.files import is_plain_name, read_text
from oss_tools.checkpoints.json_files import read_json
from oss_tools.errors import BadCheckpoint

DEFAULT = "default"
FIELD = "chat_template"  # of tokenizer_config.json and of chat_template.json
FILE, FOLDER, OLD_FILE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
MAX_TEMPLATE = 2 << 20  # bytes; published ones have up to 50 kB
MAX_TEMPLATES = 64
PREFIX = Keys.Tokenizer.CHAT_TEMPLATE + "."


def of_folder(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A folder's templates by name, the only one being `default`; and what the user should know of them. Raises BadCheckpoint."""
    files = _of_files(folder)
    listed = _of_field(tokenizer_config.get(FIELD), folder / "tokenizer_config.json")
    if files and listed and files != listed:
        return files, (f"{folder}: tokenizer_config.json holds other chat templates than {FILE}, which goes before it",)
    if not files and not listed and (folder / OLD_FILE).exists():
        listed = _of_field(read_json(folder / OLD_FILE, MAX_TEMPLATE).get(FIELD), folder / OLD_FILE)
    return files or listed, ()


def _of_files(folder: Path) -> dict[str, str]:
    found = {DEFAULT: read_text(folder / FILE, MAX_TEMPLATE)} if (folder / FILE).exists() else {}
    for file in sorted((folder / FOLDER).glob("*.jinja")) if (folder / FOLDER).is_dir() else ():
        if len(found) == MAX_TEMPLATES:
            raise BadCheckpoint(f"{folder / FOLDER}: more than {MAX_TEMPLATES} chat templates")
        found[file.stem] = read_text(file, MAX_TEMPLATE)
    return found


def _of_field(value: Any, where: Path) -> dict[str, str]:
    """What stands in a field `chat_template`: a text, a list of named ones, or (as transformers takes it too) an object."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, Mapping) else []
    if isinstance(value, list):
        pairs = [(e.get("name"), e.get("template")) if isinstance(e, Mapping) else (None, None) for e in value]
    sound = all(isinstance(name, str) and isinstance(template, str) for name, template in pairs)
    if not isinstance(value, list | Mapping) or not sound or len(pairs) > MAX_TEMPLATES:
        raise BadCheckpoint(f'{where}: {FIELD} is neither a text nor a list of {{"name": …, "template": …}}')
    return dict(pairs)


def fields(templates: Mapping[str, str]) -> dict[str, Any]:
    """The fields of Metadata that hold these templates."""
    others = {name: template for name, template in templates.items() if name != DEFAULT}
    return {"chat_template": templates.get(DEFAULT), "chat_templates": others}


def by_name(metadata: Metadata) -> dict[str, str]:
    """All templates of a checkpoint."""
    default = {} if metadata.chat_template is None else {DEFAULT: metadata.chat_template}
    return default | metadata.chat_templates


def files_of(metadata: Metadata, tokenizer_config: dict[str, Any]) -> dict[str, bytes]:
    """The files that hold a checkpoint's templates. Several go into `tokenizer_config` as a list: every version of transformers,
    and llama.cpp's converter, reads it."""
    tokenizer_config.pop(FIELD, None)
    if metadata.chat_templates:
        tokenizer_config[FIELD] = [{"name": name, "template": text} for name, text in by_name(metadata).items()]
        return {}
    if metadata.chat_template is None:
        return {}
    return {FILE: metadata.chat_template.encode("utf-8", "backslashreplace")}


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def to_gguf(metadata: Metadata) -> dict[str, Any]:
    """GGUF's keys. Raises BadCheckpoint for two names that become one there: letters, digits and `_` are all that it allows."""
    keys: dict[str, Any] = {} if metadata.chat_template is None else {Keys.Tokenizer.CHAT_TEMPLATE: metadata.chat_template}
    named = {re.sub(r"[^a-zA-Z0-9]", "_", name): text for name, text in sorted(metadata.chat_templates.items())}
    if len(named) < len(metadata.chat_templates) or "" in named:
        raise BadCheckpoint(
            f"chat templates named {', '.join(sorted(metadata.chat_templates))}: GGUF cannot tell them apart"
        )
    if named:
        keys[Keys.Tokenizer.CHAT_TEMPLATES] = sorted(named)
        keys |= {PREFIX + name: text for name, text in named.items()}
    return keys


def of_gguf(keys: Mapping[str, Any], where: str) -> dict[str, str]:
    """A GGUF file's templates by name. Raises BadCheckpoint."""
    named = {key.removeprefix(PREFIX): value for key, value in keys.items() if key.startswith(PREFIX)}
    found = {DEFAULT: keys[Keys.Tokenizer.CHAT_TEMPLATE]} if Keys.Tokenizer.CHAT_TEMPLATE in keys else {}
    found |= {name: value for name, value in named.items() if name not in found}
    if len(found) > MAX_TEMPLATES:
        raise BadCheckpoint(f"{where}: {len(found)} chat templates, more than {MAX_TEMPLATES}")
    for name, value in found.items():
        key = Keys.Tokenizer.CHAT_TEMPLATE if name == DEFAULT else PREFIX + name
        if not isinstance(value, str):
            raise BadCheckpoint(f"{where}: key {key} is of the wrong type")
        if not is_plain_name(name):
            raise BadCheckpoint(f"{where}: key {key[:120]!r} has no name for a chat template")
    return found
