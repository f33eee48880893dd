"""Recipes: ordered rules that say which tensor gets which number format, in YAML (configs/recipes, or a user's file)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from oss_tools.checkpoints import container_names, writer_for
from oss_tools.checkpoints.yaml_files import read_yaml
from oss_tools.errors import BadRecipe
from oss_tools.formats import Format, all_formats, get_format
from oss_tools.guesses import near_names, none_named
from oss_tools.models import TensorSpec
from oss_tools.resources import resource

MIXTURE = re.compile(
    r"(?:UD-)?I?Q[1-8]_(?:K_)?(?:XXS|XS|S|M|L|XL)", re.IGNORECASE
)  # llama.cpp's words for mixtures of formats
LAYERS = re.compile(r"more_bits|first (\d+)(?:/(\d+))?")  # of a rule
MATRICES = (("mlp.down", "llama"), ("experts.down", "gpt_oss"))  # (role, model_type)
KEEP = "keep"  # as a format: leave the tensor in the format it has
MAX_BYTES = 1 << 20  # of a recipe file
SMALLER_BLOCKS = {  # what llama.cpp takes instead where rows do not divide into blocks of 256
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
FIELDS = {"description", "modules_to_not_convert", "no_fallback", "rules"}  # of a recipe file
RULE_FIELDS = {"role", "name", "format", "quantization", "otherwise", "layers", "when"}


@dataclass(frozen=True)
class Traits:
    """What a recipe's rules may ask of a model.

    Attributes:
        layers: how many decoder layers it has.
        experts: how many experts a layer has, at most; 0 in a dense model.
        tied: whether its embedding is its output as well.
        grouped: whether several queries share keys and values.
    """

    layers: int = 0
    experts: int = 0
    tied: bool = False
    grouped: bool = False

    @classmethod
    def of(cls, specs: Iterable[TensorSpec]) -> Traits:
        """Those of the model that has these tensors."""
        specs = list(specs)
        rows = {role: max((s.matrices[1] for s in specs if s.role == f"attention.{role}"), default=0) for role in "qk"}
        return cls(
            1 + max((s.layer for s in specs if s.layer is not None), default=-1),
            max((s.matrices[0] for s in specs if s.role.startswith("experts.")), default=0),
            not any(s.role == "output" for s in specs),
            0 < rows["k"] < rows["q"],
        )


@dataclass(frozen=True)
class Rule:
    """One line of a recipe: tensors whose role or name matches get the format.

    Attributes:
        format: a format's name, or `keep`.
        role: pattern (`*` and `?`) on the tensor's role, e.g. `experts.*`; None matches every role.
        name: pattern on the tensor's canonical name; None matches every name.
        quantization: the format's quantization rule (`search`, `plain`, `floor`, …), or None for its default.
        otherwise: formats to try in turn where the first cannot be had (rows do not divide into blocks, or the container
            has no place for it); the plan says so for every tensor that needs one.
        layers: the layers for which it is: `first 4`, `first 1/8`, or `more_bits`, llama.cpp's choice: the first and the last
            eighth, and every third layer between; "" for all tensors.
        when: the models for which it is: fields of `Traits` and their values.
    """

    format: str
    role: str | None = None
    name: str | None = None
    quantization: str | None = None
    otherwise: tuple[str, ...] = ()
    layers: str = ""
    when: tuple[tuple[str, int], ...] = ()

    def matches(self, spec: TensorSpec, model: Traits) -> bool:
        return (
            (self.role is None or fnmatchcase(spec.role, self.role))
            and (self.name is None or fnmatchcase(spec.name, self.name))
            and (not self.layers or (spec.layer is not None and is_layer(self.layers, spec.layer, model.layers)))
            and all(getattr(model, trait) == value for trait, value in self.when)
        )


def is_layer(which: str, layer: int, layers: int) -> bool:
    """Whether a layer is one of those that a rule's `layers` means, in a model of so many. Source: llama-quant.cpp."""
    match = LAYERS.fullmatch(which)
    if match and match[1]:
        return layer < (layers * int(match[1]) // int(match[2]) if match[2] else int(match[1]))
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True)
class Recipe:
    """Ordered rules; the first that matches a tensor decides. A tensor that none matches is kept as it is.

    Vectors (norms, biases, sinks) and tables of positions take only plain float formats; a rule that would quantize them keeps
    them instead.

    Attributes:
        modules_to_not_convert: patterns of modules that are left as they are, whatever the rules say.
        no_fallback: whether a tensor that cannot have what its rule says is an error.
        model: that for which the rules decide (`for_model`).
    """

    name: str
    rules: tuple[Rule, ...]
    description: str = ""
    modules_to_not_convert: tuple[str, ...] = ()
    no_fallback: bool = False
    model: Traits = Traits()

    def rule_for(self, spec: TensorSpec) -> Rule:
        """The rule that decides about a tensor. `modules_to_not_convert` comes first."""
        if any(_within(module, spec.name) for module in self.modules_to_not_convert):
            return Rule(KEEP)
        rule = next((r for r in self.rules if r.matches(spec, self.model)), Rule(KEEP))
        if (spec.is_vector or spec.role == "positions") and rule.format != KEEP and not get_format(rule.format).is_float:
            return Rule(KEEP)
        return rule

    def for_model(self, specs: Iterable[TensorSpec]) -> Recipe:
        """The same recipe for the model that has these tensors."""
        return replace(self, model=Traits.of(specs))

    def keeping(self, modules: tuple[str, ...]) -> Recipe:
        """The same recipe with more modules left alone."""
        return replace(self, modules_to_not_convert=self.modules_to_not_convert + modules)

    def without_fallback(self) -> Recipe:
        """The same recipe, in which a tensor that cannot have what its rule says is an error."""
        return replace(self, no_fallback=True)

    def falling_back(self, formats: tuple[str, ...]) -> Recipe:
        """The same recipe with formats to try where a rule's own cannot be had."""
        formats = tuple(writable(name).name for name in formats)
        return replace(
            self, rules=tuple(r if r.format == KEEP else replace(r, otherwise=r.otherwise + formats) for r in self.rules)
        )

    def quantizing_by(self, quantization: str) -> Recipe:
        """The same recipe with another quantization rule wherever the format knows it. Raises BadRecipe if none does."""
        rules, changed = [], False
        for r in self.rules:
            knows = r.format != KEEP and quantization in get_format(r.format).rules
            changed |= knows
            rules.append(replace(r, quantization=quantization) if knows else r)
        if not changed:
            raise BadRecipe(f"no format of recipe {self.name} has a quantization rule {quantization!r}")
        return replace(self, rules=tuple(rules))


def _within(module: str, name: str) -> bool:
    """Whether a tensor belongs to a module, as Hugging Face's modules_to_not_convert means it: `*` matches anything."""
    return fnmatchcase(name, module) or fnmatchcase(name, module + ".*")


def recipe_names() -> list[str]:
    """The recipes that travel with the program."""
    return sorted(path.stem for path in resource("configs/recipes").glob("*.yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by its name or by the path of a YAML file. Raises BadRecipe."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = resource("configs/recipes") / f"{str(name).lower()}.yaml"
        if not path.exists():
            raise BadRecipe(f"{none_named('recipe', str(name), recipe_names())}; or give a .yaml file")
    return _parse(read_yaml(path, BadRecipe, MAX_BYTES), path)


def _parse(content: Any, path: Path) -> Recipe:
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list):
        raise BadRecipe(f"{path}: a recipe is a mapping with a list `rules`")
    unknown = set(content) - FIELDS
    if unknown:
        raise BadRecipe(f"{path}: unknown field {min(map(str, unknown))!r}; known: {', '.join(sorted(FIELDS))}")
    modules = content.get("modules_to_not_convert") or []
    if not isinstance(modules, list) or not all(isinstance(m, str) for m in modules):
        raise BadRecipe(f"{path}: modules_to_not_convert is a list of names")
    rules = tuple(_parse_rule(rule, f"{path}: rule {i + 1}") for i, rule in enumerate(content["rules"]))
    if not isinstance(content.get("no_fallback", False), bool):
        raise BadRecipe(f"{path}: no_fallback is true or false")
    no_fallback = content.get("no_fallback", False)
    return Recipe(path.stem, rules, str(content.get("description", "")), tuple(modules), no_fallback)


def _parse_rule(content: Any, where: str) -> Rule:
    if not isinstance(content, dict) or not set(content) <= RULE_FIELDS:
        raise BadRecipe(f"{where}: a rule is a mapping of {', '.join(sorted(RULE_FIELDS))}")
    otherwise = content.get("otherwise") or []
    otherwise = [otherwise] if isinstance(otherwise, str) else otherwise
    if not isinstance(otherwise, list):
        raise BadRecipe(f"{where}: otherwise is a format or a list of formats")
    texts = [content.get("format"), *(content.get(k, "") for k in ("role", "name", "quantization", "layers")), *otherwise]
    if not all(isinstance(t, str) for t in texts):
        raise BadRecipe(f"{where}: format is missing, or a field is not text")
    names = [name if name == KEEP else writable(name, f"{where}: ").name for name in (content["format"], *otherwise)]
    layers, when = content.get("layers", ""), _parse_when(content.get("when", {}), where)
    if layers and not ((match := LAYERS.fullmatch(layers)) and match[2] != "0"):
        raise BadRecipe(f"{where}: layers is `more_bits`, `first 4` or `first 1/8`, not {layers!r}")
    patterns = content.get("role"), content.get("name"), content.get("quantization")
    rule = Rule(names[0], *patterns, tuple(names[1:]), layers, when)
    if rule.quantization and (rule.format == KEEP or rule.quantization not in get_format(rule.format).rules):
        known = "" if rule.format == KEEP else f"; {rule.format} has {', '.join(get_format(rule.format).rules)}"
        raise BadRecipe(f"{where}: {rule.format} has no quantization rule {rule.quantization!r}{known}")
    return rule


def _parse_when(content: Any, where: str) -> tuple[tuple[str, int], ...]:
    kinds = {field.name: type(field.default) for field in fields(Traits)}
    if not isinstance(content, dict) or any(type(value) is not kinds.get(key) for key, value in content.items()):
        known = ", ".join(f"{name} (true or false)" if kind is bool else name for name, kind in kinds.items())
        raise BadRecipe(f"{where}: when is a mapping of traits of a model: {known}")
    return tuple(content.items())


def recipe_of_format(name: str) -> Recipe:
    """What `--format NAME` means: every matrix except the router in that format; every tensor for a plain float; a mixture that
    has a name, by its recipe. Where rows do not divide into a k-quant's blocks, they take what llama.cpp takes.

    Raises BadRecipe for a format that cannot be written.
    """
    if MIXTURE.fullmatch(name) and name.lower() in recipe_names():
        return load_recipe(name.lower())
    format = writable(name)
    name = format.name
    if format.is_float:
        return Recipe(name, (Rule(name),), f"everything in {name}")
    otherwise = tuple(SMALLER_BLOCKS[n] for n in (name,) if n in SMALLER_BLOCKS)
    rules = (Rule(KEEP, role="router"), Rule(name, otherwise=otherwise))
    return Recipe(name, rules, f"every matrix except the router in {name}")


def writable(name: str, where: str = "") -> Format:
    """The format of this name, in whatever case. Raises BadRecipe, beginning with `where`, if it cannot be written."""
    if found := all_formats().get(name.lower() if name not in all_formats() else name):
        if found.rules or found.is_float:
            return found
        raise BadRecipe(f"{where}{name} can be read but not written; formats to write: {_by_container()}")
    if MIXTURE.fullmatch(name):
        mixtures = ", ".join(recipe for recipe in recipe_names() if MIXTURE.fullmatch(recipe))
        raise BadRecipe(
            f"{where}{name} is llama.cpp's name of a mixture of formats; recipes of such mixtures: {mixtures}; "
            f"formats to write: {_by_container()}"
        )
    near = near_names(name, [f.name for f in all_formats().values() if f.rules or f.is_float], likeness=0.5)
    guess = f"did you mean {' or '.join(near)}? F" if near else "f"
    raise BadRecipe(f"{where}no number format named {name!r}; {guess}ormats to write: {_by_container()}")


def writable_formats(container: str = "") -> list[str]:
    """Formats that `convert` can produce, for the matrices of some model in a container, or in any."""
    names = sorted(f.name for f in all_formats().values() if f.rules or f.is_float)
    if not container:
        return names
    writer = writer_for(container)
    return [name for name in names if any(writer.holds(get_format(name), *matrix) for matrix in MATRICES)]


def _by_container() -> str:
    """Which formats each container can be written in, in words."""
    return "; ".join(f"in {container} {', '.join(writable_formats(container))}" for container in container_names())


KEEP_ALL = Recipe("keep", (), "every tensor in the format it has")
