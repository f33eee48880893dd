"""Names of tensors without what a wrapper put before them: a model that was saved inside another module, or without its own.

What stands before the first decoder layer tells the prefix; nothing is known of any program's, and what is known of some is only
said to the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # may stand anywhere in a name
KNOWN = {
    "module.": "torch's DataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "torch's FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "PEFT",
    "pretrained_model.": "TRL",
    "language_model.": "a model of several modalities",
    "model.language_model.": "a model of several modalities",
}


@dataclass(frozen=True)
class Naming:
    """How a container names a model's tensors.

    Attributes:
        body: what stands before everything but the head.
        anchors: ends of names that only a language model has, the surest first.
        parts: what follows `body`.
        head: the head's name.
    """

    body: str
    anchors: tuple[str, ...]
    parts: tuple[str, ...]
    head: str


HF = Naming(
    "model.",
    ("embed_tokens.weight", "layers.0.input_layernorm.weight"),
    ("embed_tokens.", "layers.", "norm."),
    "lm_head.weight",
)
ORIGINAL = Naming(
    "",
    ("embedding.weight", "block.0.attn.norm.scale"),
    ("embedding.", "block.", "norm.", "unembedding."),
    "unembedding.weight",
)


def unwrapped(names: Iterable[str], naming: Naming) -> tuple[dict[str, str], str]:
    """({stored name: the name it has in the container's own terms}, a remark), both empty if the names are as they should be."""
    inner = {name: INNER.sub("", name) for name in names if INNER.search(name)}
    said = sorted({match[1] + "." for name in inner for match in INNER.finditer(name)})
    current = {inner.get(name, name): name for name in names}
    found = _body(current, naming)
    changed = {} if found is None else _renamed(current, found, naming)
    mapping = inner | {current[name]: new for name, new in changed.items()}
    return {old: new for old, new in mapping.items() if old != new}, _remark(said, found, changed, naming)


def _body(names: Mapping[str, str], naming: Naming) -> str | None:
    """What stands where `naming.body` should; None if that does, or if it is not clear."""
    for anchor in naming.anchors:
        ends = {name.removesuffix(anchor) for name in names if name == anchor or name.endswith("." + anchor)}
        if naming.body in ends:
            return None
        if len(ends) == 1:
            return ends.pop()
    return None


def _is_wrapper(found: str, naming: Naming) -> bool:
    """Whether it stands before all of the model, its own `body` and its head."""
    return f".{found}".endswith(f".{naming.body}")


def _renamed(names: Mapping[str, str], found: str, naming: Naming) -> dict[str, str]:
    """New names for all that the prefix concerns."""
    if _is_wrapper(found, naming):
        wrapper = found.removesuffix(naming.body)
        return {name: name.removeprefix(wrapper) for name in names if name.startswith(wrapper)}
    parts = tuple(found + part for part in naming.parts)
    renamed = {name: naming.body + name.removeprefix(found) for name in names if name.startswith(parts)}
    heads = [name for name in names if name.endswith("." + naming.head) and name not in renamed]
    if len(heads) == 1 and naming.head not in names:
        renamed[heads[0]] = naming.head
    return renamed


def _remark(inner: list[str], found: str | None, changed: Mapping[str, str], naming: Naming) -> str:
    sentences = []
    if inner:
        sentences.append(f"the tensors' names hold {' and '.join(map(_explained, inner))}, which is passed over")
    if found is not None and changed:
        if found == "":
            sentences.append(
                f"the tensors' names lack {naming.body!r} (saved from the bare model); read as if it were there"
            )
        elif _is_wrapper(found, naming):
            prefix = found.removesuffix(naming.body)
            sentences.append(f"the tensors' names begin with {_explained(prefix)}, which is passed over")
        else:
            sentences.append(
                f"the tensors' names have {_explained(found)} in place of {naming.body!r}; read as if they had not"
            )
    return "; ".join(sentences)


def _explained(prefix: str) -> str:
    return f"{prefix!r} ({KNOWN[prefix]})" if prefix in KNOWN else repr(prefix)
