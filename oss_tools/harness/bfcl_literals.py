"""Java and JavaScript values as BFCL's models write them, in strings, read into Python values as BFCL reads them.

BFCL's reader is coarse, and its verdicts are what published scores are made of, so ours reads alike: lists end at the first
closing bracket and are cut at every comma, quotation marks stay on the strings of a Java array, and what does not have the form
of its type stays the string that it was. (ShishirPatil/gorilla, eval_checker/ast_eval.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

WHOLE = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
LONGEST = (
    4000  # characters of a value; a longer one stays text: some forms below are sought in a time that grows as its square
)
SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")

JAVA_TYPES: dict[str, type] = (
    dict.fromkeys(("byte", "short", "integer", "long"), int)
    | dict.fromkeys(("float", "double"), float)
    | dict.fromkeys(("char", "String", "any"), str)
    | dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list)
    | dict.fromkeys(("HashMap", "Hashtable"), dict)
    | {"boolean": bool, "Set": set}
)
JAVASCRIPT_TYPES: dict[str, type] = {
    "String": str,
    "any": str,
    "integer": int,
    "Bigint": int,
    "float": float,
    "Boolean": bool,
    "dict": dict,
    "array": list,
}


def _matches(pattern: re.Pattern[str], text: str, suffix: str = "") -> str | None:
    """The text without its suffix (one of these letters, required where there are any), if it has the form of the pattern."""
    body = text[:-1] if suffix and text[-1:] in tuple(suffix) else None if suffix else text
    # a line break at the end is let through, as Python's $ does
    return body if body is not None and pattern.fullmatch(body.removesuffix("\n") if not suffix else body) else None


def _truth(text: str) -> bool | str:
    return text == "true" if text in ("true", "false") else text


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# ---- Java -----------------------------------------------------------------------------------------------------------


def java_value(text: str, kind: str, nested: str | None = None) -> Any:
    """A value of a Java type; the text itself if it has not that type's form.

    Raises NotImplementedError for Set, Hashtable, Queue and Stack.

    Args:
        kind: a key of JAVA_TYPES.
        nested: the type of an array's or list's elements.
    """
    if len(text) > LONGEST:
        return text
    scalars: dict[str, tuple[re.Pattern[str], str, Callable[[str], Any]]] = {
        "float": (SCIENTIFIC, "fF", float),
        "double": (SCIENTIFIC, "", float),
        "long": (WHOLE, "lL", int),
        **dict.fromkeys(("byte", "short", "integer"), (WHOLE, "", int)),
    }
    if kind in scalars:
        pattern, suffix, convert = scalars[kind]
        body = _matches(pattern, text, suffix)
        return text if body is None else convert(body)
    if kind == "boolean":
        return _truth(text)
    if kind in ("char", "String", "any"):
        return text
    if kind == "Array":
        return _java_array(text, nested)
    if kind == "ArrayList":
        return _java_list(text, nested)
    if kind == "HashMap":
        return _java_map(text)
    raise NotImplementedError(f"Java values of type {kind}")


def _java_array(text: str, nested: str | None) -> Any:
    body = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
    if not body:
        return text
    elements = [element.strip() for element in body[1].split(",")]
    return [java_value(element, nested) if nested else _java_guess(element) for element in elements if element]


def _java_list(text: str, nested: str | None) -> Any:
    listed = re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text)
    added = re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.DOTALL)
    if listed:
        elements = listed[1].split(",")
    elif added:
        elements = re.findall(r"add\((.+?)\)", added[1])
    else:
        return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text
    return [_java_element(element.strip(), nested) for element in elements]


def _java_element(text: str, nested: str | None) -> Any:
    if nested in ("char", "String"):
        return text[1:-1]
    return java_value(text, nested) if nested else _java_guess(text)


def _java_map(text: str) -> Any:
    body = re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", text, re.DOTALL)
    if body:
        return {key: _java_guess(value.strip()) for key, value in re.findall(r'put\("(.*?)",\s*(.*?)\)', body[1])}
    return {} if re.search(r"new\s+HashMap<.*?>\s*\(\)", text) else text


def _java_guess(text: str) -> Any:
    """A value whose type is not declared."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    for pattern, suffix, convert in ((WHOLE, "lL", int), (SCIENTIFIC, "fF", float)):
        body = _matches(pattern, text, suffix)
        if body is not None:
            return convert(body)
    return _number(text)


# ---- JavaScript -----------------------------------------------------------------------------------------------------


def javascript_value(text: str, kind: str, nested: str | None = None) -> Any:
    """A value of a JavaScript type; the text itself if it has not that type's form. Arguments as in `java_value`."""
    if len(text) > LONGEST:
        return text
    scalars: dict[str, tuple[re.Pattern[str], str, Callable[[str], Any]]] = {
        "integer": (WHOLE, "", int),
        "float": (DECIMAL, "", float),
        "Bigint": (WHOLE, "n", int),
    }
    if kind in scalars:
        pattern, suffix, convert = scalars[kind]
        body = _matches(pattern, text, suffix)
        return text if body is None else convert(body)
    if kind == "Boolean":
        return _truth(text)
    if kind == "String":
        return text[1:-1] if _quoted(text) else text
    if kind == "dict":
        return _javascript_object(text.strip())
    if kind == "array":
        return _javascript_array(text.strip(), nested)
    return text


def _quoted(text: str) -> bool:
    return text[:1] in ('"', "'") and text.endswith(text[:1])


def _javascript_array(text: str, nested: str | None) -> Any:
    inner = re.match(r"(?:\[\s*(?=\[)|new\s+Array\(\s*(?=\[))", text)
    if inner:
        rows = re.match(r"\[\s*\[.*?\]\s*(?:,\s*\[.*?\]\s*)*\]|new\s+Array\(\s*\[.*?\]\s*(?:,\s*\[.*?\]\s*)*\)", text)
        if rows:
            first, *others = re.findall(r"\[(.*?)\]", rows[0])
            return [[_javascript_guess(e) for e in row.split(",")] for row in (first.strip().removeprefix("["), *others)]
    body = re.match(r"\[(.*?)\]|new\s+Array\((.*?)\)", text)
    if not body:
        return text
    inside = (body[1] if body[1] is not None else body[2]).strip()
    elements = [element.strip() for element in inside.split(",")] if inside else []
    try:
        return [_javascript_element(element, nested) if nested else _javascript_guess(element) for element in elements]
    except ValueError:
        return text


def _javascript_element(text: str, nested: str) -> Any:
    if nested not in JAVASCRIPT_TYPES:
        raise ValueError(nested)
    return javascript_value(text, nested)


def _javascript_object(text: str) -> Any:
    if text == "{}":
        return {}
    body = re.match(r"\{(.*?)\}", text)
    if not body:
        return text
    return {key.strip().strip("'\""): _member(value.strip()) for key, value in _pairs(body[1])}


def _pairs(text: str) -> list[tuple[str, str]]:
    """`key: value` pairs. A comma ends a value only where another key follows, with no comma before its colon."""
    pairs: list[tuple[str, str]] = []
    start = 0
    while True:
        start += len(text[start:]) - len(text[start:].lstrip(":"))
        colon = text.find(":", start)
        if colon < 0:
            return pairs
        key, begin = text[start:colon], colon + 1
        start = next((m.end() for m in re.finditer(",", text) if m.end() > begin and ":" in _piece(text, m.end())[1:]), 0)
        pairs.append((key, text[begin : start - 1 if start else None].strip()))
        if not start:
            return pairs


def _piece(text: str, start: int) -> str:
    """Up to the next comma."""
    return text[start:].partition(",")[0]


def _member(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _javascript_object(text)
    return _javascript_guess(text.strip("'\""))


def _javascript_guess(text: str) -> Any:
    """A value whose type is not declared."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if _quoted(text) else _number(text)
