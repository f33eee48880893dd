"""Adapters as PEFT saves them, by itself or under unsloth, axolotl, TRL and others: a configuration and a safetensors file.

Source: huggingface/peft, `utils/save_and_load.py` (names), `tuners/lora/layer.py` and `variants.py` (what merging computes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from oss_tools.adapters import peft_config
from oss_tools.adapters.changes import BiasUpdate, Change, Decomposed, Factors, LowRank, Replacement, TokenRows
from oss_tools.adapters.fitting import fitted, fitted_table, misfit, rank_of
from oss_tools.adapters.places import Place, Places
from oss_tools.adapters.tensors import AdapterFile, AdapterTensor, SafetensorsAdapter
from oss_tools.errors import BadCheckpoint

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
    "torch.load('adapter_model.bin', map_location='cpu', weights_only=True).items()}, 'adapter_model.safetensors')\""
)
PARTS = "lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
FACTOR = re.compile(rf"(?P<module>.+)\.(?P<part>{PARTS})(?P<rest>(?:\.\w+){{0,2}})")
TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.\w+)?")
KEPT_WHOLE = re.compile(r"\.modules_to_save\.\w+(?=\.)|\.modules_to_save(?=\.)|\.base_layer(?=\.)")
STACKS = ("gate_up_proj", "down_proj")  # parameters of a module of experts, whose adapters bear the module's name alone
OTHERS = {  # parts of tensors' names -> the type of adapter
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "ia3_": "IA3",
    "lora_E": "AdaLoRA",
    "ranknum": "AdaLoRA",
    "oft_": "OFT or BOFT",
    "vera_": "VeRA",
    "prompt_embeddings": "prompt tuning",
    "lora_a": "mlx-lm's LoRA",
    "lora_down": "kohya's LoRA",
}


@dataclass
class _Factors:
    """The tensors of one update, by part: A, B, magnitude, and B's bias."""

    module: str
    embedding: bool
    parts: dict[str, AdapterTensor] = field(default_factory=dict)


class PeftAdapter:
    """An open PEFT adapter.

    Attributes:
        path: what was opened.
        base: the name of the model that it was made for, or "".
        sha256: of its weights and configuration.
        remarks: what a user should know about how it was read, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint."""
        self.path = path
        folder = path if path.is_dir() else path.parent
        weights = path / WEIGHTS if path.is_dir() else path
        if not weights.exists() and (folder / PICKLED).exists():
            raise BadCheckpoint(
                f"{folder / PICKLED}: a Python pickle, which is never opened here; in its folder run: {CONVERT}"
            )
        if not weights.exists():
            raise BadCheckpoint(f"{path}: holds no adapter: {_instead(path)}")
        if not (folder / peft_config.NAME).exists():
            raise BadCheckpoint(f"{weights}: {peft_config.NAME} is missing beside it, which holds the rank and alpha")
        self.config = peft_config.read_config(folder / peft_config.NAME)
        self.base = self.config.base
        self.file: AdapterFile = SafetensorsAdapter(weights)
        self.remarks: list[str] = []
        try:
            self._factors: dict[tuple[str, bool], _Factors] = {}
            self._tokens: dict[str, AdapterTensor] = {}
            self._whole: dict[str, AdapterTensor] = {}
            self._sort_tensors()
            self.file.check_values()
            self.sha256 = f"{self.file.sha256()} {peft_config.sha256(folder / peft_config.NAME)}"
        except BaseException:
            self.close()
            raise

    # ---- names ------------------------------------------------------------------------------------------------------

    def _sort_tensors(self) -> None:
        adapters: set[str] = set()
        tables = {name.partition(".lora_embedding_")[0] for name in self.file.tensors if ".lora_embedding_" in name}
        for name, tensor in self.file.tensors.items():
            if match := FACTOR.fullmatch(name):
                words = match["rest"].strip(".").split(".")
                kind = words[-1] if words[-1] in ("weight", "bias") else "weight"
                adapters |= set(words) - {"", "weight", "bias"}
                part = match["part"].removeprefix("lora_").removeprefix("embedding_")
                key = match["module"], "embedding" in match["part"]
                if part == "magnitude_vector":  # bears the same name in embeddings
                    key = key[0], key[0] in tables
                found = self._factors.setdefault(key, _Factors(*key))
                part = f"{part}.bias" if kind == "bias" else part
                if part in found.parts:
                    raise BadCheckpoint(f"{self.file.path}: holds several adapters; save one of them alone")
                found.parts[part] = tensor
            elif match := TOKENS.fullmatch(name):
                self._tokens[match["module"]] = tensor
            elif ".original_module." not in name:
                self._refuse_other_kinds(name)
                self._whole[KEPT_WHOLE.sub("", name)] = tensor
        if len(adapters) > 1:
            raise BadCheckpoint(
                f"{self.file.path}: holds the adapters {', '.join(sorted(adapters)[:4])}; save one of them alone"
            )

    def _refuse_other_kinds(self, name: str) -> None:
        for mark, kind in OTHERS.items():
            if re.search(rf"(^|[._]){re.escape(mark)}", name):
                raise BadCheckpoint(
                    f"{self.file.path}: tensor {name} is of {kind}, not of PEFT's LoRA, and is not supported"
                )

    # ---- changes ----------------------------------------------------------------------------------------------------

    def changes(self, places: Places, strength: float) -> Iterator[Change]:
        """All changes of a model's tensors; of one tensor, weights kept whole come first. `places`: of a Hugging Face folder.

        Raises BadCheckpoint for an adapter of another model, or of a kind that is not supported.
        """
        self._check_kept_whole()
        yield from self._kept_whole(places)
        for module, tensor in self._tokens.items():
            yield from self._token_rows(module, tensor, places)
        for factors in self._factors.values():
            yield from self._low_rank(factors, places, strength)
        if strength != 1 and (self._whole or self._tokens):
            self.remarks.append(
                f"{self.path}: --scale is of low-rank updates; weights that the adapter keeps whole are taken whole"
            )

    def _check_kept_whole(self) -> None:
        modules = [f".{name.rpartition('.')[0]}." for name in self._whole]
        for name in self.config.modules_to_save:
            if not any(f".{name}." in module for module in modules):
                raise BadCheckpoint(
                    f"{self.file.path}: modules_to_save names {name[:80]!r}, whose weights are not there; save it with them"
                )

    def _kept_whole(self, places: Places) -> Iterator[Change]:
        for name, tensor in self._whole.items():
            found = next((found for known in places.named(name) if (found := places.of(known))), None)
            if not found:
                raise self._unknown(name, places)
            shape = found[0].placement.stored_shape
            if tensor.shape != shape:
                more = f"{self.file.path}: tensor {tensor.name} has shape {list(tensor.shape)}, the base's {list(shape)}: "
                grown = found[0].spec.role in ("embedding", "output") and tensor.shape[1:] == shape[1:]
                raise BadCheckpoint(
                    more
                    + ("it was trained with another number of tokens; resize the base's embeddings first" * grown)
                    + ("this is another model's adapter" * (not grown))
                )
            for place in found:
                yield Replacement(place, tensor, transposed=place.placement.transposed)

    def _token_rows(self, module: str, tensor: AdapterTensor, places: Places) -> Iterator[Change]:
        tokens = next((t for name, t in self.config.tokens.items() if not name or f".{module}".endswith(f".{name}")), None)
        found = next((found for known in places.named(module) if (found := places.of(f"{known}.weight"))), None)
        if tokens is None or not found:
            raise self._unknown(tensor.name, places)
        if tensor.shape != (len(tokens), found[0].columns) or max(tokens, default=0) >= found[0].out:
            raise BadCheckpoint(
                f"{self.file.path}: tensor {tensor.name} has shape {list(tensor.shape)}, for {len(tokens)} tokens up to "
                f"{max(tokens, default=0)}; the base's table is {[found[0].out, found[0].columns]}"
            )
        for place in found:
            yield TokenRows(place, tensor, tokens)

    def _low_rank(self, factors: _Factors, places: Places, strength: float) -> Iterator[Change]:
        parts, module = factors.parts, factors.module
        for part, other in (("A", "B"), ("B", "A"), ("magnitude_vector", "A")):
            if part in parts and other not in parts:
                raise BadCheckpoint(
                    f"{self.file.path}: tensor {parts[part].name} is without its lora_{other}: the file is incomplete"
                )
        name, found, pair = self._fitted(factors, places)
        names = (module.removeprefix("base_model.model.").replace(".base_layer", ""), name.removesuffix(".weight"), name)
        scale = strength * self.config.scale(names, rank_of(pair), f"{self.file.path}: {parts['A'].name}")
        magnitude = parts.get("magnitude_vector")
        if (magnitude is not None) != self.config.weight_decomposed:
            said = "is" if self.config.weight_decomposed else "is not"
            raise BadCheckpoint(
                f"{self.file.path}: use_dora {said} set, but {module} has {'no ' * (magnitude is None)}magnitudes"
            )
        for place in found:
            if magnitude is None:
                yield LowRank(place, pair, scale)
                continue
            length = place.columns if factors.embedding else place.out
            if magnitude.height * magnitude.width != length or place.stacked > 1:
                raise BadCheckpoint(
                    f"{self.file.path}: tensor {magnitude.name} has shape {list(magnitude.shape)}, expected {length} magnitudes: "
                    "this is another model's adapter"
                )
            yield Decomposed(place, pair, scale, magnitude, by_column=factors.embedding)
        if bias := parts.get("B.bias"):
            yield from self._bias(name, bias, places, scale)

    def _fitted(self, factors: _Factors, places: Places) -> tuple[str, list[Place], Factors]:
        """The stored weight that factors are of, its places, and the factors as they lie. Raises BadCheckpoint."""
        a, b = factors.parts["A"], factors.parts["B"]
        misfits = []
        for known in places.named(factors.module.replace(".base_layer", "")):
            for name in (f"{known}.weight", known, *(f"{known}.{stack}" for stack in STACKS)):
                found = places.of(name)
                if not found:
                    continue
                pair = fitted_table(found, a, b) if factors.embedding else fitted(found, a, b)
                if pair:
                    return name, found, pair
                misfits.append(misfit(f"{self.file.path}: {factors.module}", found, a, b))
        raise BadCheckpoint(misfits[0]) if misfits else self._unknown(a.name, places)

    def _bias(self, name: str, tensor: AdapterTensor, places: Places, scale: float) -> Iterator[Change]:
        found = places.of(f"{name.removesuffix('.weight')}.bias")
        if not found:
            raise BadCheckpoint(f"{self.file.path}: tensor {tensor.name} is a bias, and the base has none there (lora_bias)")
        if tensor.height * tensor.width != found[0].out:
            raise BadCheckpoint(
                f"{self.file.path}: tensor {tensor.name} has shape {list(tensor.shape)}: another model's adapter"
            )
        for place in found:
            yield BiasUpdate(place, tensor, scale)

    def _unknown(self, name: str, places: Places) -> BadCheckpoint:
        of = f" (it was made for {self.base[:100]})" if self.base else ""
        return BadCheckpoint(
            f"{self.file.path}: tensor {name[:200]} belongs to nothing in a {places.architecture.model_type}: "
            f"another model's adapter{of}, or one of a kind that is not known here"
        )

    def close(self) -> None:
        self.file.close()


def _instead(path: Path) -> str:
    """What a path is in which an adapter was looked for, and what to give."""
    if not path.exists():
        return "there is no such file or folder"
    inner = sorted(p.parent for p in path.glob(f"*/{peft_config.NAME}")) if path.is_dir() else []
    if inner:
        return f"there are some in folders within it; give one of them: {', '.join(p.name for p in inner[:5])}"
    if path.is_dir() and (path / "adapters.safetensors").exists():
        return "adapters.safetensors is mlx-lm's; merge it with `mlx_lm.fuse`"
    return f"{WEIGHTS} and {peft_config.NAME} are not there"
