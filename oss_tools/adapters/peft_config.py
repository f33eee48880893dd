"""adapter_config.json: what PEFT says about an adapter beside its weights.

Source: huggingface/peft, `tuners/lora/config.py`, `tuners/lora/model.py` and `utils/other.py` (`get_pattern_key`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import read_small
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.errors import BadCheckpoint

NAME = "adapter_config.json"
MAX_BYTES = 16 << 20
MAX_NAMES = 2048  # in a list
MAX_PATTERNS = 1 << 18  # of ranks or alphas: one for each module, each expert's too
MAX_EXPRESSIONS = 64  # of those, that are no plain names
MAX_EXPRESSION = 200  # characters
LARGEST_SCALE = 1e6
PLAIN = re.compile(r"[\w.\-]+")
REPEATED = re.compile(r"(?<!\\)[*+{?]")  # what makes a regular expression slow; in a group, what makes it endless
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")  # init_lora_weights that train from another base
NOT_MERGEABLE = {
    "alora_invocation_tokens": "it works from certain tokens on (aLoRA), which no weights can say",
    "arrow_config": "it chooses among adapters for every token (Arrow), which no weights can say",
    "layer_replication": "it repeats layers of the base, which makes another model",
    "use_qalora": "it pools its inputs (QALoRA)",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "kasa_config": "it is of a kind of LoRA (KaSA) that is not known here",
    "monteclora_config": "it is of a kind of LoRA (MonteCLoRA) that is not known here",
    "megatron_config": "its layers are Megatron's",
}
KINDS = {  # config.json's words of other programs -> what they are
    "fine_tune_type": "an adapter of mlx-lm; merge it with `mlx_lm.fuse`",
    "lora_parameters": "an adapter of mlx-lm; merge it with `mlx_lm.fuse`",
}


@dataclass(frozen=True)
class PeftConfig:
    """What decides how an adapter's tensors are used.

    Attributes:
        base: base_model_name_or_path, or "".
        rank, alpha: of modules that no pattern names.
        ranks, alphas: by pattern.
        stabilized: use_rslora: alpha is divided by the rank's root.
        weight_decomposed: use_dora.
        modules_to_save: names (the last words) of modules whose weights are kept whole.
        tied: ensure_weight_tying: what is said of the embedding holds of the output too.
        tokens: trainable_token_indices: module's name -> indices; "" is the embedding.
        targets_parameters: whether target_parameters name something.
    """

    base: str
    rank: int
    alpha: float
    ranks: Patterns
    alphas: Patterns
    stabilized: bool
    weight_decomposed: bool
    modules_to_save: tuple[str, ...]
    tied: bool
    tokens: Mapping[str, tuple[int, ...]]
    targets_parameters: bool

    def scale(self, names: tuple[str, ...], rank: int, where: str) -> float:
        """What B · A is multiplied by, for a module that has these names, of this rank.

        Raises BadCheckpoint where the configuration says another rank.
        """
        said, alpha = self.ranks.of(names, self.rank), self.alphas.of(names, self.alpha)
        if said != rank:
            raise BadCheckpoint(f"{where} has rank {rank}, {NAME} says {said}: they are of different adapters")
        return alpha / math.sqrt(rank) if self.stabilized else alpha / rank


class Patterns:
    """rank_pattern or alpha_pattern: the first name, or regular expression, that is a module's name or its end decides."""

    def __init__(self, content: Any, where: str, *, whole: bool) -> None:
        """Raises BadCheckpoint for what is no mapping from patterns to numbers, or might search without end."""
        self._plain: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        content = {} if content is None else content
        if not isinstance(content, dict) or len(content) > MAX_PATTERNS:
            raise BadCheckpoint(f"{where} is no mapping of at most {MAX_PATTERNS} names")
        for place, (key, value) in enumerate(content.items()):
            number = _number(value, f"{where}: {key[:80]!r}", whole=whole)
            if PLAIN.fullmatch(key):
                self._plain[key] = (place, number)
            else:
                self._expressions.append((place, _expression(key, where), number))
        if len(self._expressions) > MAX_EXPRESSIONS:
            raise BadCheckpoint(f"{where} holds {len(self._expressions)} regular expressions, more than {MAX_EXPRESSIONS}")

    def of(self, names: tuple[str, ...], otherwise: float) -> float:
        """The number of a module that has these names; the first of them that a pattern knows decides."""
        for name in names:
            words = name.split(".")
            ends = [".".join(words[start:]) for start in range(len(words))]
            found = [self._plain[end] for end in ends if end in self._plain]
            found += [(place, number) for place, pattern, number in self._expressions if pattern.match(name)]
            if found:
                return min(found)[1]
        return otherwise


def _expression(key: str, where: str) -> re.Pattern[str]:
    """A regular expression that ends soon: at most two repetitions, none of a group."""
    bare = re.sub(r"([*+}])\?", r"\1", key.replace("(?:", "("))  # without what makes groups nameless and repetitions lazy
    if len(key) > MAX_EXPRESSION or len(REPEATED.findall(bare)) > 2 or re.search(r"\)[*+{?]|\(\?", bare):
        raise BadCheckpoint(f"{where}: the expression {key[:80]!r} might search without end; write the modules' names")
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError):
        raise BadCheckpoint(f"{where}: {key[:80]!r} is no regular expression") from None


def read_config(path: Path) -> PeftConfig:
    """Reads and checks adapter_config.json. Raises BadCheckpoint in words that say what is not supported, and what to do."""
    raw = parse_json(read_small(path, MAX_BYTES), str(path))
    _refuse_other_kinds(raw, path)
    base = raw.get("base_model_name_or_path")
    rank, alpha = (_number(raw.get(k), f"{path}: {k}", whole=k == "r") for k in ("r", "lora_alpha"))
    return PeftConfig(
        base=base if isinstance(base, str) and base.isprintable() else "",
        rank=int(rank),
        alpha=alpha,
        ranks=Patterns(raw.get("rank_pattern"), f"{path}: rank_pattern", whole=True),
        alphas=Patterns(raw.get("alpha_pattern"), f"{path}: alpha_pattern", whole=False),
        stabilized=_flag(raw, "use_rslora", path),
        weight_decomposed=_flag(raw, "use_dora", path),
        modules_to_save=tuple(dict.fromkeys(_names(raw, "modules_to_save", path))),
        tied=_flag(raw, "ensure_weight_tying", path),
        tokens=_tokens(raw.get("trainable_token_indices"), path),
        targets_parameters=bool(_names(raw, "target_parameters", path)),
    )


def _refuse_other_kinds(raw: dict[str, Any], path: Path) -> None:
    kind = raw.get("peft_type")
    for key, what in KINDS.items():
        if kind is None and key in raw:
            raise BadCheckpoint(f"{path}: {what}")
    if kind != "LORA":
        shown = str(kind)[:40] if kind is not None else "no peft_type"
        raise BadCheckpoint(
            f"{path}: an adapter of the type {shown}, which is not supported; merge it with PEFT's merge_and_unload()"
        )
    for key, why in NOT_MERGEABLE.items():
        if raw.get(key):
            raise BadCheckpoint(f"{path}: {key}: {why}; it cannot be merged here")
    unknown = [
        key for key, value in raw.items() if key.startswith("use_") and value and key not in ("use_rslora", "use_dora")
    ]
    if unknown:
        raise BadCheckpoint(f"{path}: {unknown[0][:80]} is not known here; merge it with PEFT's merge_and_unload()")
    begun = raw.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise BadCheckpoint(
            f"{path}: init_lora_weights is {begun[:40]!r}: it belongs to a base that PEFT changed before training; save it by "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…), which makes it the published base's"
        )


def _number(value: Any, where: str, *, whole: bool) -> float:
    """A rank, or an alpha."""
    fine = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or abs(value) > LARGEST_SCALE or (whole and value < 1):
        raise BadCheckpoint(f"{where} is {str(value)[:40]!r}, expected {'a rank' if whole else 'a number'}")
    return value


def _flag(raw: dict[str, Any], key: str, path: Path) -> bool:
    value = raw.get(key)
    if value not in (None, True, False):
        raise BadCheckpoint(f"{path}: {key} is {str(value)[:40]!r}, expected true or false")
    return bool(value)


def _names(raw: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = raw.get(key)
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MAX_NAMES:
        raise BadCheckpoint(f"{path}: {key} is no list of at most {MAX_NAMES} names")
    return tuple(names)


def _tokens(value: Any, path: Path) -> dict[str, tuple[int, ...]]:
    found = {} if value is None else {"": value} if isinstance(value, list) else value
    if not isinstance(found, dict) or not all(
        isinstance(indices, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in indices) for indices in found.values()
    ):
        raise BadCheckpoint(f"{path}: trainable_token_indices are no lists of tokens")
    return {name: tuple(indices) for name, indices in found.items()}


def sha256(path: Path) -> str:
    """Of the file's content."""
    return hashlib.sha256(read_small(path, MAX_BYTES)).hexdigest()
