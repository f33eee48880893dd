"""Whether a base is the model that an adapter was made for, by their names."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from oss_tools.models import Checkpoint

REPOSITORY = re.compile(r"[\w.\-]+/[\w.\-]+")
CACHED = re.compile(r"models--([\w.\-]+?)--([\w.\-]+)")  # a repository's folder in the hub's cache
FORMS = re.compile(  # of the same weights: formats, containers, who made them
    r"[-_.](unsloth|bnb|4bit|8bit|nf4|int4|int8|fp8|bf16|fp16|f16|fp32|mxfp4|nvfp4|gguf|hf|safetensors|awq|gptq|dynamic|q\d\w*|iq\d\w*)(?=$|[-_.])"
)


class Named(Enum):
    """How a base's name and the one that an adapter names stand to each other."""

    SAME = 1
    UNSURE = 2
    OTHER = 3


def named(base: Checkpoint) -> list[str]:
    """Names of a checkpoint that are certain: of its repository in the hub's cache, or in its own configuration."""
    found = [f"{match[1]}/{match[2]}" for part in base.path.absolute().parts if (match := CACHED.fullmatch(part))]
    said = base.architecture.hf_config().get("_name_or_path")
    if isinstance(said, str) and REPOSITORY.fullmatch(said):
        found.append(said)
    return found or [base.path.name]


def other_model(wanted: str, ours: list[str]) -> Named:
    """Of an adapter's `base_model_name_or_path` and a base's names."""
    words = {_bare(name) for name in ours}
    if _bare(wanted) in words:
        return Named.SAME
    certain = (
        REPOSITORY.fullmatch(wanted) and not wanted.startswith((".", "~")) and any(REPOSITORY.fullmatch(o) for o in ours)
    )
    return Named.OTHER if certain else Named.UNSURE


def _bare(name: str) -> str:
    """A model's name without its owner and the form of its weights."""
    last = Path(name.rstrip("/")).name.lower().removesuffix(".gguf")
    before = ""
    while before != last:
        before, last = last, FORMS.sub("", last)
    return last.replace("_", "-")
