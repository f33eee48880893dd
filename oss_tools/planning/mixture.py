"""A mixture of formats under a budget, why each tensor has what it has, and the recipe that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP, Recipe, Rule
from oss_tools.errors import BadRequest
from oss_tools.planning.choice import Option, best_under, frontier, least_under
from oss_tools.planning.sensitivity import Sensitivities
from oss_tools.planning.units import Unit
from oss_tools.sizes import format_size

TRIES = 8  # to meet a budget in bytes of files


@dataclass(frozen=True)
class Budget:
    """What the mixture may take (bytes; bits a weight of the whole file), or lose (nats)."""

    kind: Literal["size", "bits", "kld"]
    value: float


@dataclass(frozen=True)
class Choice:
    """What a unit gets, and the next smaller and the next larger of what it could have had; None where there is none."""

    unit: Unit
    option: Option
    smaller: Option | None
    larger: Option | None

    @property
    def why(self) -> str:
        """In words."""
        said = []
        if self.smaller:
            saved, more = self.option.nbytes - self.smaller.nbytes, self.smaller.loss - self.option.loss
            said.append(f"{self.smaller.format} would save {format_size(saved)} and lose {more:.2g} nats")
        if self.larger:
            taken, less = self.larger.nbytes - self.option.nbytes, self.option.loss - self.larger.loss
            said.append(f"{self.larger.format} would take {format_size(taken)} and gain {less:.2g}")
        return "; ".join(said) or "the only one"


@dataclass(frozen=True)
class Mixture:
    """A choice for every unit.

    Attributes:
        nbytes: of the files' tensors.
        bits: a weight, of the whole.
        total: the sum of losses; `predicted`: the divergence that is expected of it, in nats.
    """

    choices: tuple[Choice, ...]
    nbytes: int
    bits: float
    total: float
    predicted: float

    @property
    def formats(self) -> dict[str, str]:
        """By canonical tensor name; `keep` too."""
        return {name: choice.option.format for choice in self.choices for name in choice.unit.names}


def choose(sensitivities: Sensitivities, budget: Budget, container: str) -> Mixture:
    """The best mixture under a budget. Raises BadRequest where there is none."""
    checkpoint, units = sensitivities.checkpoint, sensitivities.units
    options = [sensitivities.options(unit) for unit in units]
    if budget.kind == "kld":
        return _mixture(sensitivities, container, least_under(options, sensitivities.sum_for(budget.value)))
    allowed = budget.value if budget.kind == "size" else budget.value * checkpoint.parameters / 8
    whole = make_plan(checkpoint, container, Recipe("keep", ())).target_bytes
    room = int(allowed) - (whole - sum(unit.kept_bytes for unit in units))
    for _ in range(TRIES):
        found = _mixture(sensitivities, container, best_under(options, room))
        if found.nbytes <= allowed:
            return found
        room -= max(found.nbytes - int(allowed), 1)
    raise BadRequest(f"no mixture of these formats takes at most {format_size(allowed)}")


def _mixture(sensitivities: Sensitivities, container: str, chosen: Sequence[Option]) -> Mixture:
    choices = []
    for unit, option in zip(sensitivities.units, chosen, strict=True):
        front = frontier(sensitivities.options(unit))
        at = front.index(option)
        choices.append(Choice(unit, option, front[at - 1] if at else None, front[at + 1] if at + 1 < len(front) else None))
    total = sum(option.loss for option in chosen)
    nbytes = make_plan(sensitivities.checkpoint, container, recipe_of(choices, "plan")).target_bytes
    bits = 8 * nbytes / sensitivities.checkpoint.parameters
    return Mixture(tuple(choices), nbytes, bits, total, sensitivities.predicted(total))


def uniform(sensitivities: Sensitivities, format: str) -> dict[str, str]:
    """Every unit in one format, or as it is where it cannot have it; by canonical tensor name."""
    return {name: format if format in unit.formats else KEEP for unit in sensitivities.units for name in unit.names}


# ---- the recipe -----------------------------------------------------------------------------------------------------


def recipe_of(choices: Sequence[Choice], name: str, description: str = "") -> Recipe:
    """Rules for a model's tensors: one for each role, before them one for each tensor that has another format than most of its
    role. Tensors that were not chosen for are kept."""
    return Recipe(name, tuple(_rules(choices)), description)


def _rules(choices: Sequence[Choice]) -> list[Rule]:
    by_role: dict[str, list[Choice]] = {}
    for choice in choices:
        by_role.setdefault(choice.unit.role, []).append(choice)
    single, roles = [], []
    for role, own in by_role.items():
        usual = Counter(choice.option.format for choice in own).most_common(1)[0][0]
        single += [
            Rule(choice.option.format, name=name)
            for choice in own
            if choice.option.format != usual
            for name in choice.unit.names
        ]
        roles.append(Rule(usual, role=role))
    return single + roles


def recipe_text(recipe: Recipe, comment: Sequence[str]) -> str:
    """A recipe as YAML, behind lines of comment."""
    lines = [f"# {line}" for line in comment]
    lines += [f"description: {_quoted(recipe.description)}", "rules:"]
    for rule in recipe.rules:
        fields = {key: getattr(rule, key) for key in ("role", "name", "format") if getattr(rule, key)}
        lines.append("  - {" + ", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items()) + "}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A YAML scalar."""
    plain = text.replace("_", "").replace(".", "").replace("-", "").isalnum() and not text[0].isdigit()
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def to_record(mixture: Mixture) -> dict[str, Any]:
    """As JSON: totals, and each tensor's format with why."""
    return {
        "bytes": mixture.nbytes,
        "bits": mixture.bits,
        "predicted_kld": mixture.predicted,
        "sum_of_losses": mixture.total,
        "tensors": [
            {
                "names": list(choice.unit.names),
                "role": choice.unit.role,
                "format": choice.option.format,
                "bytes": choice.option.nbytes,
                "loss": choice.option.loss,
                "smaller": choice.smaller and vars(choice.smaller),
                "larger": choice.larger and vars(choice.larger),
                "why": choice.why,
            }
            for choice in mixture.choices
        ],
    }
