"""Recipes: ordered rules that say which tensor gets which number format, in YAML (configs/recipes, or a user's file)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
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

MIXTURE = re.compile(r"(?:UD-)?(Q[2-6]_K)_(?:S|M|L|XL)", re.IGNORECASE)  # llama.cpp's word for a mixture around a k-quant
MATRICES = (("mlp.down", "llama"), ("experts.down", "gpt_oss"))  # (role, model_type)
KEEP = "keep"  # as a format: leave the tensor in the format it has
MAX_BYTES = 1 << 20  # of a recipe file
FIELDS = {"description", "modules_to_not_convert", "no_fallback", "rules"}  # of a recipe file


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
    """

    format: str
    role: str | None = None
    name: str | None = None
    quantization: str | None = None
    otherwise: tuple[str, ...] = ()

    def matches(self, spec: TensorSpec) -> bool:
        return (self.role is None or fnmatchcase(spec.role, self.role)) and (
            self.name is None or fnmatchcase(spec.name, self.name)
        )


@dataclass(frozen=True)
class Recipe:
    """Ordered rules; the first that matches a tensor decides. A tensor that none matches is kept as it is.

    Vectors (norms, biases, sinks) and tables of positions take only plain float formats; a rule that would quantize them keeps
    them instead.

    Attributes:
        modules_to_not_convert: patterns of modules that are left as they are, whatever the rules say.
        no_fallback: whether a tensor that cannot have what its rule says is an error.
    """

    name: str
    rules: tuple[Rule, ...]
    description: str = ""
    modules_to_not_convert: tuple[str, ...] = ()
    no_fallback: bool = False

    def rule_for(self, spec: TensorSpec) -> Rule:
        """The rule that decides about a tensor. `modules_to_not_convert` comes first."""
        if any(_within(module, spec.name) for module in self.modules_to_not_convert):
            return Rule(KEEP)
        rule = next((r for r in self.rules if r.matches(spec)), Rule(KEEP))
        if (spec.is_vector or spec.role == "positions") and rule.format != KEEP and not get_format(rule.format).is_float:
            return Rule(KEEP)
        return rule

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
        path = resource("configs/recipes") / f"{name}.yaml"
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
    fields = {"role", "name", "format", "quantization", "otherwise"}
    if not isinstance(content, dict) or not set(content) <= fields:
        raise BadRecipe(f"{where}: a rule is a mapping of {', '.join(sorted(fields))}")
    otherwise = content.get("otherwise") or []
    otherwise = [otherwise] if isinstance(otherwise, str) else otherwise
    if not isinstance(otherwise, list):
        raise BadRecipe(f"{where}: otherwise is a format or a list of formats")
    texts = [content.get("format"), *(content.get(k, "") for k in ("role", "name", "quantization")), *otherwise]
    if not all(isinstance(t, str) for t in texts):
        raise BadRecipe(f"{where}: format is missing, or a field is not text")
    names = [name if name == KEEP else writable(name, f"{where}: ").name for name in (content["format"], *otherwise)]
    rule = Rule(names[0], content.get("role"), content.get("name"), content.get("quantization"), tuple(names[1:]))
    if rule.quantization and (rule.format == KEEP or rule.quantization not in get_format(rule.format).rules):
        known = "" if rule.format == KEEP else f"; {rule.format} has {', '.join(get_format(rule.format).rules)}"
        raise BadRecipe(f"{where}: {rule.format} has no quantization rule {rule.quantization!r}{known}")
    return rule


def recipe_of_format(name: str) -> Recipe:
    """What `--format NAME` means: every matrix but the router in that format; every tensor for a plain float.

    Raises BadRecipe for a format that cannot be written.
    """
    format = writable(name)
    name = format.name
    if format.is_float:
        return Recipe(name, (Rule(name),), f"everything in {name}")
    return Recipe(name, (Rule(KEEP, role="router"), Rule(name)), f"every matrix but the router in {name}")


def writable(name: str, where: str = "") -> Format:
    """The format of this name, in whatever case. Raises BadRecipe, beginning with `where`, if it cannot be written."""
    if found := all_formats().get(name.lower() if name not in all_formats() else name):
        if found.rules or found.is_float:
            return found
        raise BadRecipe(f"{where}{name} can be read but not written; formats to write: {_by_container()}")
    if match := MIXTURE.fullmatch(name):
        raise BadRecipe(
            f"{where}{name} is llama.cpp's name of a mixture of formats, of which {match[1].lower()} can be read but not "
            f"written; formats to write: {_by_container()}"
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
