"""Whether a base is the model that an adapter was made for, by their names."""

from __future__ import annotations

import re
from pathlib import Path

from oss_tools.models import Checkpoint

REPOSITORY = re.compile(r"\w[\w.\-]*/[\w.\-]+")
CACHED = re.compile(r"models--([\w.\-]+?)--([\w.\-]+)")  # a repository's folder in the hub's cache
FORMS = re.compile(  # of the same weights: formats, containers, who packed them
    r"[-_.](unsloth|bnb|4bit|8bit|nf4|int4|int8|fp8|bf16|fp16|f16|fp32|mxfp4|nvfp4|gguf|hf|safetensors|awq|gptq|dynamic|i?q\d\w*)"
    r"(?=$|[-_.])"
)


def is_repository(name: str) -> bool:
    """Whether it is a name as the hub has them, not a path on somebody's disk."""
    return REPOSITORY.fullmatch(name) is not None


def repository_of(path: Path) -> str | None:
    """The name of the repository from which a checkpoint in the hub's cache came; None elsewhere."""
    found = [f"{match[1]}/{match[2]}" for part in path.absolute().parts if (match := CACHED.fullmatch(part))]
    return found[-1] if found else None


def is_named(base: Checkpoint, wanted: str) -> bool:
    """Whether a base bears a name (its repository, folder, file, or config.json), whoever the owner and whatever the form."""
    said = base.architecture.hf_config().get("_name_or_path")
    names = (repository_of(base.path), base.path.absolute().name, said if isinstance(said, str) else None)
    return _bare(wanted) in {_bare(name) for name in names if name}


def _bare(name: str) -> str:
    """A model's name without its owner and the form of its weights."""
    last = Path(name.rstrip("/")).name.lower().removesuffix(".gguf").removeprefix("meta-")
    before = ""
    while before != last:
        before, last = last, FORMS.sub("", last)
    return last.replace("_", "-")
