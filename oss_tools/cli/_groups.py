"""Options that several verbs take together: a dataclass, of which each field is an option, is one parameter of a verb's `run`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform, get_type_hints

import typer

Class = TypeVar("Class")
MARK = "is_group_of_options"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def options(group: type[Class]) -> type[Class]:
    """Makes a class a group: a frozen dataclass, whose fields are annotated as parameters of Typer's are. What `__post_init__`
    refuses is refused before the verb begins."""
    made = dataclass(frozen=True, kw_only=True)(group)
    setattr(made, MARK, True)
    return made


def need_each_other(first: tuple[str, object], second: tuple[str, object]) -> None:
    """Raises BadParameter where one of two options, each given as (name, value), is named without the other."""
    (name, value), (other, other_value) = first, second
    if (value is None) != (other_value is None):
        raise typer.BadParameter(f"give {name} and {other} together", param_hint=name)


def flat(run: Callable[..., Any]) -> Callable[..., Any]:
    """A verb's `run` as Typer reads it: in place of each group the options in it, in their order."""
    hints = get_type_hints(run, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(run).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type) and hasattr(kind, MARK):
            groups[parameter.name] = kind
            of_group = get_type_hints(kind, include_extras=True)
            parameters += [_parameter(field.name, of_group[field.name], _default(field)) for field in fields(kind)]
        else:
            parameters.append(_parameter(parameter.name, kind, parameter.default))

    def called(**given: Any) -> Any:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)}) for name, group in groups.items()
        }
        return run(**given, **made)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__doc__ = run.__doc__
    return called


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
