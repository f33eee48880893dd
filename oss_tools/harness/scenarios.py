"""Conversations of several turns in which tools are executed: scored by the state in which they leave their world.

The documents have the fields of BFCL's multi-turn categories: `question` (a list of messages for each turn),
`involved_classes` with their `initial_config`, `ground_truth` (the calls of each turn). After each turn the model's world must
be in the state in which the ground truth's calls leave theirs, and every result of those calls must be among the results that
the model has seen. Our own scenarios play in the classes of `worlds`; BFCL's in those of the package bfcl-eval, which the user
installs.

In a turn that `missed_function` names, tools come in addition, which the model was not shown before; such a turn may have no
messages of its own.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oss_tools.chat.written_calls import syntax_of
from oss_tools.errors import BadSource, MissingPackage
from oss_tools.harness.answers import Call, Environment, details_of
from oss_tools.harness.bfcl import VERSION, tools_of
from oss_tools.harness.data import Documents, Splits, read_jsonl
from oss_tools.harness.worlds import WORLDS, tools_of_world

BFCL_CLASSES = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
BFCL_MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
BFCL_STATELESS = ("MathAPI",)
BFCL_TURNS = ("base", "long_context", "miss_param", "miss_func")
MORE_TOOLS = (
    "There are more functions now. Please try again with them."  # what the user says in a turn that only brings tools
)


# ---- worlds ---------------------------------------------------------------------------------------------------------


class World:
    """The objects of one conversation, new and in their first state.

    Attributes:
        objects: by the name of their class.
        tools: names of the methods that may be called, those of later turns included, as in bfcl-eval.
    """

    def __init__(self, doc: Mapping[str, Any]) -> None:
        """Raises BadSource for an unknown class or a configuration that it does not take, MissingPackage without bfcl-eval."""
        self.tools = {tool["name"] for tools in (doc["conversation"]["tools"], *_later(doc).values()) for tool in tools}
        self.objects = {name: _made(name, doc) for name in doc["involved_classes"]}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result of a call, or what went wrong, as text for the model."""
        owner = next((thing for thing in self.objects.values() if name in self.tools and hasattr(type(thing), name)), None)
        if owner is None:
            return f"Error during execution: there is no function {name}"
        try:
            result = getattr(owner, name)(**copy.deepcopy(dict(arguments)))  # which the object may keep, and change
        except Exception as error:  # the tools are other people's programs, and the arguments a model's
            return f"Error during execution: {error}"
        if isinstance(result, str):
            return result
        try:
            return json.dumps(result) if isinstance(result, dict) else str(result)
        except (TypeError, ValueError):
            return str(result)

    def state(self) -> dict[str, dict[str, Any]]:
        """The public attributes of every object."""
        return {
            name: {key: value for key, value in vars(thing).items() if not key.startswith("_")}
            for name, thing in self.objects.items()
        }


def _made(name: str, doc: Mapping[str, Any]) -> Any:
    config = copy.deepcopy(doc["initial_config"].get(name, {}))
    if name in WORLDS:
        try:
            return WORLDS[name](**config)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise BadSource(f"{doc.get('id')}: {name} does not take its configuration: {error}") from None
    thing = getattr(_bfcl_module(name, doc), name)()
    if name not in BFCL_STATELESS:
        thing._load_scenario(config, long_context="long_context" in str(doc["id"]))
    return thing


def _bfcl_module(name: str, doc: Mapping[str, Any]) -> Any:
    if name not in BFCL_MODULES:
        raise BadSource(f"{doc.get('id')}: there is no class {name}")
    try:
        return importlib.import_module(f"{BFCL_CLASSES}.{BFCL_MODULES[name]}")
    except ImportError as error:
        needed = "install it with: pip install --no-deps bfcl-eval mpmath"
        raise MissingPackage(f"BFCL's conversations play in classes of the package bfcl-eval ({error}); {needed}") from None


class Scenario(Environment):
    """Executes calls and says the user's next line; see `Environment`."""

    def __init__(self, doc: Mapping[str, Any]) -> None:
        super().__init__(doc)
        self.world = World(doc)
        self.turn = 0

    def respond(self, calls: Sequence[Call], text: str) -> list[dict[str, str]]:
        if calls:
            return [
                {"role": "tool", "name": f"functions.{call.name}", "content": _executed(self.world, call)} for call in calls
            ]
        self.turn += 1
        if self.turn >= len(self.doc["question"]):
            return []
        return [{"role": "user", "content": _said(self.doc["question"][self.turn]) or MORE_TOOLS}]

    def tools(self) -> list[dict[str, Any]]:
        more = [tool for turn, tools in _later(self.doc).items() if int(turn) <= self.turn for tool in tools]
        return [*self.doc["conversation"]["tools"], *more]


def _executed(world: World, call: Call) -> str:
    if call.arguments is None:
        return "Error during execution: the arguments are no JSON object"
    return world.call(call.name, call.arguments)


def _later(doc: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tools that come in later turns, by the turn's number as a string (a key of JSON)."""
    later: dict[str, list[dict[str, Any]]] = doc.get("later_tools") or {}
    return later


def _said(turn: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(message["content"] for message in turn)


# ---- documents ------------------------------------------------------------------------------------------------------


def splits(*, config_source: str, **where: Any) -> Splits:
    """Our own scenarios: the file beside the task's YAML that `files` names."""
    source = Path(config_source)
    return _Own(source.stem, folder=source.parent, files=where["files"])


class _Own(Splits):
    def _find(self, split: str) -> Documents:
        return super()._find(split).map(_own_scenario)


def _own_scenario(doc: dict[str, Any]) -> dict[str, Any]:
    tools = [tool for name in doc["involved_classes"] for tool in tools_of_world(WORLDS[name])]
    return _conversation(doc, tools)


def _conversation(doc: Mapping[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields `conversation`, how it begins, and `later_tools`, what comes in addition, if anything does."""
    said = [{"role": "user", "content": _said(doc["question"][0])}]
    held = doc.get("missed_function", {})
    if not held:
        return {"conversation": {"messages": said, "tools": tools}}
    missed = {name for names in held.values() for name in names}
    return {
        "conversation": {"messages": said, "tools": [tool for tool in tools if tool["name"] not in missed]},
        "later_tools": {turn: [tool for tool in tools if tool["name"] in names] for turn, names in held.items()},
    }


def bfcl_splits(*, category: str, config_source: str, **where: Any) -> Splits:
    """BFCL's scenarios, from its own files in the user's folder. `category` is one of BFCL_TURNS."""
    return _Bfcl(Path(config_source).stem, folder=Path(config_source).parent, data=where.get("data"), config=category)


class _Bfcl(Splits):
    """Reads BFCL_v4_multi_turn_CATEGORY.json, the file of that name in possible_answer/, and multi_turn_func_doc/."""

    def _find(self, split: str) -> Documents:
        name = f"{VERSION}_multi_turn_{self.config}.json"
        if self.data is None or not (self.data / name).exists():
            raise BadSource(
                f"{self.task}: no data; with --data give the folder bfcl_eval/data of the package bfcl-eval, which has {name}"
            )
        truths = {row["id"]: row["ground_truth"] for row in read_jsonl(self.data / "possible_answer" / name)}
        documents = read_jsonl(self.data / name)
        try:
            return documents.map(lambda doc: self._scenario(doc, truths[doc["id"]]))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise BadSource(f"{self.data / name}: not the fields of {VERSION}: {type(error).__name__}: {error}") from None

    def _scenario(self, doc: dict[str, Any], truth: list[list[str]]) -> dict[str, Any]:
        for name in doc["involved_classes"]:
            _bfcl_module(name, doc)
        assert self.data is not None
        folder = self.data / "multi_turn_func_doc"
        functions = [f for name in doc["involved_classes"] for f in read_jsonl(folder / f"{BFCL_MODULES[name]}.json")]
        truth_calls = [[_written_call(text, doc) for text in turn] for turn in truth]
        return {"ground_truth": truth_calls, **_conversation(doc, tools_of(functions))}


def _written_call(text: str, doc: Mapping[str, Any]) -> dict[str, Any]:
    """`sort('a.txt', reverse=True)` as {"name", "arguments"}; values without a name get their parameter's."""
    parsed = syntax_of(text)
    if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name):
        raise ValueError(f"{text!r} is no call")
    name = parsed.func.id
    owner = next(found for c in doc["involved_classes"] if hasattr(found := getattr(_bfcl_module(c, doc), c), name))
    parameters = [parameter for parameter in inspect.signature(getattr(owner, name)).parameters if parameter != "self"]
    values = dict(zip(parameters, map(ast.literal_eval, parsed.args), strict=False))
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in parsed.keywords if keyword.arg}
    return {"name": name, "arguments": {**values, **named}}


def first_line(doc: Mapping[str, Any]) -> str:
    """For models that see no conversations."""
    return _said(doc["question"][0])


# ---- scores ---------------------------------------------------------------------------------------------------------


def right_turns(doc: Mapping[str, Any], turns: Sequence[Sequence[Call]]) -> int:
    """How many turns go right until one goes wrong; the calls of each turn in one list, whatever its steps."""
    ours, theirs = World(doc), World(doc)
    seen: list[str] = []
    for number, truth in enumerate(doc["ground_truth"]):
        calls = turns[number] if number < len(turns) else ()
        seen += [_executed(ours, call) for call in calls]
        wanted = [theirs.call(call["name"], call["arguments"]) for call in truth]
        if truth and not (calls and ours.state() == theirs.state() and _contains(seen, wanted)):
            return number
    return len(doc["ground_truth"])


def _contains(seen: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether every wanted result was seen, as often as it is wanted."""
    left = list(seen)
    for result in wanted:
        if result not in left:
            return False
        left.remove(result)
    return True


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`correct`: every turn goes right; `turns`: the share of turns that do before the first that does not.

    A conversation that was broken off (too many steps, no final answer) is not correct.
    """
    details = details_of(results[0])
    turns = [[call for step in turn for call in step] for turn in details.turns]
    wanted = len(doc["ground_truth"])
    right = right_turns(doc, turns)
    finished = len(turns) == wanted and not {"no_final", "too_many_steps"} & set(details.problems)
    return {"correct": float(finished and right == wanted), "turns": min(right, len(turns)) / wanted}
