"""Whether function calls are the ones that BFCL's ground truth allows.

A ground truth holds, for every call, the values that each parameter may have; "" among them means that it may be left out. The
rules are those of bfcl-eval, with which the verdicts are compared in the tests: strings are compared without blanks, capitals and
most punctuation; an integer stands for a float, in Python's functions; values of Java and JavaScript come as strings in the
syntax of their language; a value may be a variable's name where the ground truth says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oss_tools.harness.bfcl_literals import JAVA_TYPES, JAVASCRIPT_TYPES, java_value, javascript_value

Language = Literal["python", "java", "javascript"]
Function = Mapping[str, Any]  # name, parameters {properties, required}
Call = Mapping[str, Any]  # name, arguments
Truth = Mapping[str, Mapping[str, list[Any]]]  # function's name → parameter → what it may be

PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "any": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
}
TYPES: dict[str, dict[str, type]] = {"python": PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}
LISTS = {"python": ("array", "tuple"), "java": ("Array", "ArrayList"), "javascript": ("array",)}
READERS: dict[str, Callable[..., Any]] = {"java": java_value, "javascript": javascript_value}
IGNORED = re.compile(r"[ ,./\-_*^]")


class Wrong(Exception):
    """Why a call is not the one that is wanted."""


@dataclass(frozen=True)
class Verdict:
    """Whether calls are right, and if not, why."""

    right: bool
    reason: str = ""


def check_calls(
    functions: Sequence[Function], calls: Sequence[Call], truth: Sequence[Truth], language: Language = "python"
) -> Verdict:
    """Whether `calls` are those of the ground truth, one for each, in any order.

    Args:
        functions: as BFCL describes them (its own type names).
        calls: {"name", "arguments"}; in names "_" may stand for ".".
        truth: {function's name: {parameter: [values]}} for each wanted call.
        language: of the functions; the values of Java's and JavaScript's are strings.
    """
    if len(calls) != len(truth):
        return Verdict(False, f"{len(calls)} calls where {len(truth)} are wanted")
    left = list(calls)
    for wanted in truth:
        name = next(iter(wanted))
        described = next((function for function in functions if function["name"] == name), None)
        if described is None:
            return Verdict(False, f"{name} is not among the functions")
        reasons = []
        for number, call in enumerate(left):
            try:
                _check_call(described, call, wanted[name], language)
            except Wrong as wrong:
                reasons.append(str(wrong))
            else:
                del left[number]
                break
        else:
            return Verdict(False, "; ".join(reasons))
    return Verdict(True)


def same_name(first: str, second: str) -> bool:
    """Names in prompts have "_" for ".", which JSON function calling does not allow."""
    return first.replace(".", "_") == second.replace(".", "_")


def _check_call(function: Function, call: Call, allowed: Mapping[str, list[Any]], language: Language) -> None:
    """Raises Wrong unless the call is allowed."""
    if not same_name(call["name"], function["name"]):
        raise Wrong(f"{call['name']} instead of {function['name']}")
    arguments = call["arguments"]
    if not isinstance(arguments, Mapping):
        raise Wrong("arguments are no JSON object")
    described = function["parameters"]["properties"]
    for name in function["parameters"].get("required", ()):
        if name not in arguments:
            raise Wrong(f"{name} is missing")
    for name, value in arguments.items():
        if name not in described or name not in allowed:
            raise Wrong(f"{name} is not a parameter, or not wanted")
        _check_value(name, value, allowed[name], described[name], language)
    for name, values in allowed.items():
        if name not in arguments and "" not in values:
            raise Wrong(f"{name} is left out, whose default is not what is asked for")


def _check_value(name: str, value: Any, allowed: list[Any], described: Mapping[str, Any], language: Language) -> None:
    kind, types = described["type"], TYPES[language]
    nested = described.get("items", {}).get("type") if kind in LISTS[language] else None
    if kind not in types or (nested is not None and nested not in types):
        raise Wrong(f"{name}: values of type {kind} of {nested} are not known")
    expected, inner = types[kind], types[nested] if nested else None
    if language != "python":
        if not isinstance(value, str):
            raise Wrong(f"{name}: {value!r} is not a string in the syntax of {language}")
        try:
            value = READERS[language](value, kind, nested)
        except NotImplementedError as unknown:
            raise Wrong(str(unknown)) from None
    elif kind == "float" and type(value) is int:
        value = float(value)
    if _type_is_variable(name, value, allowed, expected, inner):
        right = value in allowed
    elif expected is dict:
        right = any(_same_dict(value, option) for option in allowed if option != "")
    elif expected is list and inner is dict:
        right = any(_same_dicts(value, option) for option in allowed)
    elif expected is str:
        right = plain(value) in [plain(option) for option in allowed if isinstance(option, str)]
    elif expected is list:
        right = any(_plain_items(value) == _plain_items(option) for option in allowed if isinstance(option, (list, str)))
    else:
        right = value in allowed
    if not right:
        raise Wrong(f"{name}: {value!r}, which is none of {allowed!r}")


def _type_is_variable(name: str, value: Any, allowed: list[Any], expected: type, inner: type | None) -> bool:
    """Whether the ground truth has another type than the parameter, as where a variable's name is wanted.

    Raises Wrong for a value that has neither the parameter's type nor the ground truth's.
    """
    wanted = _first_type(allowed)
    if type(value) is expected:
        if inner is not None and isinstance(value, list) and not any(_items_fit(value, option, inner) for option in allowed):
            raise Wrong(f"{name}: {value!r} has elements of another type than {inner.__name__}")
        return wanted is not None and wanted is not expected
    if wanted is not None and type(value) is wanted:
        return True
    raise Wrong(f"{name}: {value!r} is of type {type(value).__name__}, not {expected.__name__}")


def _first_type(allowed: Sequence[Any]) -> type | None:
    return next((type(option) for option in allowed if option != ""), None)


def _items_fit(value: Sequence[Any], option: Any, inner: type) -> bool:
    """Elements have the declared type, or that of the allowed list's first; any elements do where the list may be left out."""
    return not isinstance(option, list) or all(type(item) in (inner, _first_type(option)) for item in value)


def plain(text: str) -> str:
    """For comparison: without blanks, most punctuation and capitals, quotation marks alike."""
    return IGNORED.sub("", text).lower().replace("'", '"')


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _plain_items(values: Sequence[Any]) -> list[Any]:
    return [_plain(value) for value in values]


def _same_dict(value: Any, option: Any) -> bool:
    """Every key allowed, with one of its values; those left out may be."""
    if not isinstance(value, Mapping) or not isinstance(option, Mapping):
        return False
    if any(key not in option or _plain(item) not in _plain_items(option[key]) for key, item in value.items()):
        return False
    return all(key in value or "" in items for key, items in option.items())


def _same_dicts(value: Sequence[Any], option: Any) -> bool:
    """The same number of objects, in order."""
    return isinstance(option, (list, str)) and len(value) == len(option) and all(map(_same_dict, value, option))
