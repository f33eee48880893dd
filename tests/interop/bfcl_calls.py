"""Calls made from BFCL's ground truth: as it stands, and altered in the ways in which models go wrong."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = dict[str, Any]  # name, arguments

CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)


def language_of(category: str) -> str:
    return category.removeprefix("simple_") if category in ("simple_java", "simple_javascript") else "python"


def entries(data: Path, category: str) -> list[dict[str, Any]]:
    """Questions with their ground truth."""
    name = f"BFCL_v4_{category}.json"
    questions = [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]
    answers = [json.loads(line) for line in (data / "possible_answer" / name).read_text(encoding="utf-8").splitlines()]
    assert [q["id"] for q in questions] == [a["id"] for a in answers]
    return [{**question, **answer} for question, answer in zip(questions, answers, strict=True)]


def literal(value: Any, kind: str, nested: str | None, language: str, generator: random.Random) -> Any:
    """A value in the syntax of Java or JavaScript, as a model writes it into a JSON string."""
    if language == "java":
        return java(value, kind, nested, quoted=kind == "ArrayList" or generator.random() < 0.3)
    quote = generator.choice("'\"")
    return (
        javascript(value, kind, quote)
        if not isinstance(value, str) or (kind == "String" and generator.random() < 0.5)
        else value
    )


def java(value: Any, kind: str, nested: str | None, quoted: bool = False) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value) + {"long": "L", "float": "f"}.get(kind, "")
    if isinstance(value, list):
        items = ", ".join(
            json.dumps(item) if quoted and isinstance(item, str) else java(item, nested or "any", None) for item in value
        )
        return f"new ArrayList<>(Arrays.asList({items}))" if kind == "ArrayList" else f"new {nested}[]{{{items}}}"
    if isinstance(value, dict):
        items = [
            (key, json.dumps(item) if isinstance(item, str) else java(item, "any", None)) for key, item in value.items()
        ]
        puts = " ".join(f'put("{key}", {item});' for key, item in items)
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return str(value)


def javascript(value: Any, kind: str, quote: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, list):
        return "[" + ", ".join(javascript(item, "any", quote) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {javascript(item, 'any', quote)}" for key, item in value.items()) + "}"
    return f"{value}n" if kind == "Bigint" else str(value)


def allowed(option: Any, generator: random.Random) -> Any:
    """One of the values that a ground truth allows: objects hold lists of values themselves."""
    if isinstance(option, dict):
        chosen = {key: generator.choice(values) for key, values in option.items()}
        return {key: value for key, value in chosen.items() if value != ""}
    if isinstance(option, list):
        return [allowed(item, generator) if isinstance(item, dict) else item for item in option]
    return option


def right_calls(entry: dict[str, Any], language: str, generator: random.Random) -> list[Call]:
    """Calls that the ground truth allows, optional parameters left out now and then."""
    calls = []
    for wanted in entry["ground_truth"]:
        ((name, parameters),) = wanted.items()
        function = next(f for f in entry["function"] if f["name"] == name)
        arguments = {}
        for parameter, options in parameters.items():
            values = [option for option in options if option != ""]
            if not values or ("" in options and generator.random() < 0.5):
                continue
            described = function["parameters"]["properties"].get(parameter, {"type": "any"})
            value = allowed(generator.choice(values), generator)
            nested = described.get("items", {}).get("type")
            arguments[parameter] = (
                value if language == "python" else literal(value, described["type"], nested, language, generator)
            )
        calls.append({"name": name, "arguments": arguments})
    return calls


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def other_value(value: Any, generator: random.Random) -> Any:
    """The value with something else in it, of the same type where it can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return generator.choice([value + 1, -value, value * 10])
    if isinstance(value, str):
        return generator.choice([value + "x", value[:-1], value[::-1], value.replace("a", "b"), ""])
    if isinstance(value, list):
        return generator.choice([[*value, *value[:1]], value[:-1], value[::-1], [other_value(v, generator) for v in value]])
    if isinstance(value, dict):
        return generator.choice(
            [{**value, "extra": 1}, dict(list(value.items())[1:]), {k: other_value(v, generator) for k, v in value.items()}]
        )
    return 0


def same_in_other_words(value: Any, generator: random.Random) -> Any:
    """Strings in capitals, with blanks and punctuation; lists and objects of such."""
    if isinstance(value, str):
        return generator.choice(
            [value.upper(), value.replace(" ", "-"), f" {value}.", value.replace('"', "'"), value.replace(",", "")]
        )
    if isinstance(value, list):
        return [same_in_other_words(item, generator) for item in value]
    if isinstance(value, dict):
        return {key: same_in_other_words(item, generator) for key, item in value.items()}
    return value


def other_type(value: Any, generator: random.Random) -> Any:
    if isinstance(value, bool):
        return generator.choice([str(value), str(value).lower(), int(value), None])
    if isinstance(value, int):
        return generator.choice([float(value), value + 0.5, str(value), [value], None, bool(value)])
    if isinstance(value, float):
        return generator.choice([int(value), str(value), [value], f"{value}f"])
    if isinstance(value, str):
        return generator.choice(
            [[value], {"value": value}, 1, 1.5, True, None, value.strip("'\""), f'"{value}"', f"'{value}'"]
        )
    if isinstance(value, list):
        return generator.choice(
            [
                json.dumps(value),
                dict(enumerate(map(str, value))),
                value[0] if value else 0,
                [value],
                [*value, "x"],
                [str(v) for v in value],
            ]
        )
    if isinstance(value, dict):
        return generator.choice(
            [
                json.dumps(value),
                list(value),
                [value],
                {key: [item] for key, item in value.items()},
                {key: str(v) for key, v in value.items()},
            ]
        )
    return 0


def nested_value(value: Any, generator: random.Random) -> Any:
    """A list or object one level deeper or shallower."""
    if isinstance(value, list):
        return generator.choice(
            [
                [value],
                [[item] for item in value],
                [item for inner in value for item in (inner if isinstance(inner, list) else [inner])],
            ]
        )
    if isinstance(value, dict):
        return generator.choice([{"value": value}, {key: {"value": item} for key, item in value.items()}])
    return [value]


REWRITTEN = [
    (", ", ","),
    ('"', "'"),
    ("'", '"'),
    ('"', ""),
    ("[", "new Array("),
    ("{{", "{ {"),
    ("[]", ""),
    (":", " :"),
    ("<>", "<String>"),
    ("Arrays.asList", "List.of"),
]


def written_otherwise(value: Any, generator: random.Random) -> Any:
    """For literals in strings: other suffixes, blanks, brackets, constructors."""
    if not isinstance(value, str):
        return value
    appended = [value + end for end in ("L", "f", "n", ".0", "e3", "\n")]
    replaced = [value.replace(old, new) for old, new in REWRITTEN]
    whole = ["[]", "{}", "new ArrayList<String>()", "new HashMap<>()"]
    around = [value.rstrip("LfFn"), " " + value, f"[{value}]", f"[[{value}], [{value}]]", value.capitalize()]
    ways = [*appended, *replaced, *whole, *around]
    return generator.choice(ways)


Change = Callable[[list[Call], dict[str, Any], random.Random], None]


def in_a_value(alter: Callable[[Any, random.Random], Any]) -> Change:
    def change(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
        arguments = generator.choice(calls)["arguments"] if calls else {}
        if arguments:
            name = generator.choice(list(arguments))
            arguments[name] = alter(arguments[name], generator)

    return change


def left_out(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    arguments = generator.choice(calls)["arguments"]
    if arguments:
        del arguments[generator.choice(list(arguments))]


def one_too_many(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    generator.choice(calls)["arguments"]["unexpected"] = 1


def all_parameters(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    """Optional ones, too, with some value."""
    call = generator.choice(calls)
    function = next(f for f in entry["function"] if f["name"] == call["name"])
    for name, described in function["parameters"]["properties"].items():
        call["arguments"].setdefault(name, described.get("default", ""))


def other_function(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    call = generator.choice(calls)
    call["name"] = generator.choice([call["name"] + "_x", call["name"].upper(), *(f["name"] for f in entry["function"])])


def call_missing(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    calls.pop(generator.randrange(len(calls)))


def call_twice(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    calls.append(copy.deepcopy(generator.choice(calls)))


def other_order(calls: list[Call], entry: dict[str, Any], generator: random.Random) -> None:
    generator.shuffle(calls)


CHANGES: dict[str, Change] = {
    "nothing": lambda calls, entry, generator: None,
    "another value": in_a_value(other_value),
    "the same in other words": in_a_value(same_in_other_words),
    "another type": in_a_value(other_type),
    "another depth": in_a_value(nested_value),
    "written otherwise": in_a_value(written_otherwise),
    "a parameter left out": left_out,
    "a parameter too many": one_too_many,
    "all parameters": all_parameters,
    "another function": other_function,
    "a call missing": call_missing,
    "a call twice": call_twice,
    "another order": other_order,
}


def cases(data: Path, category: str, seed: int = 0, repeats: int = 1) -> list[tuple[str, dict[str, Any], list[Call]]]:
    """(change, entry, calls) for every entry and every change."""
    found = []
    for number, entry in enumerate(entries(data, category)):
        for change, apply in CHANGES.items():
            for repeat in range(repeats):
                generator = random.Random(f"{seed} {category} {number} {change} {repeat}")
                calls = copy.deepcopy(right_calls(entry, language_of(category), generator))
                apply(calls, entry, generator)
                found.append((change, entry, calls))
    return found
