"""BFCL v4's single-turn categories: which function a request calls for, with which arguments, and when none is called for.

The questions, functions and ground truths are BFCL's (Berkeley Function Calling Leaderboard, ShishirPatil/gorilla, Apache-2.0),
their fields unchanged; `bfcl_check` judges the calls.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oss_tools.errors import BadSource
from oss_tools.harness.answers import Call, Environment, details_of
from oss_tools.harness.bfcl_check import Language, check_calls
from oss_tools.harness.data import Documents, Splits, read_jsonl

VERSION = "BFCL_v4"
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance")
CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    *LIVE,
)
WITHOUT_TRUTH = ("irrelevance", "live_irrelevance", "live_relevance")  # what counts is whether there is a call at all
JSON_TYPES = {
    **dict.fromkeys(("integer", "byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("float", "number", "double"), "number"),
    **dict.fromkeys(("boolean", "bool", "Boolean"), "boolean"),
    **dict.fromkeys(("array", "list", "tuple", "Array", "ArrayList", "Queue", "Stack"), "array"),
    **dict.fromkeys(("dict", "object", "HashMap", "Hashtable"), "object"),
}  # what is not here is a string
LANGUAGE_NAMES = {"java": "Java 8", "javascript": "JavaScript"}


def language_of(category: str) -> Language:
    return "java" if category.endswith("java") else "javascript" if category.endswith("javascript") else "python"


# ---- documents ------------------------------------------------------------------------------------------------------


class BfclSplits(Splits):
    """The questions of one category, each with its `ground_truth` (where the category has one) and the conversation to be had."""

    def __init__(self, category: str, *, folder: Path, data: str | Path | None = None) -> None:
        super().__init__(f"bfcl_{category}", folder=folder, data=data)
        self.category = category

    def _find(self, split: str) -> Documents:
        questions, truths = self._files(split)
        documents = read_jsonl(questions)
        if truths is not None:
            by_id = {row.get("id"): row.get("ground_truth") for row in read_jsonl(truths)}
            missing = [str(doc.get("id")) for doc in documents if not isinstance(by_id.get(doc.get("id")), list)]
            if missing:
                raise BadSource(f"{truths}: no ground_truth for {missing[0]} and {len(missing) - 1} more")
            documents = documents.map(lambda doc: {"ground_truth": by_id[doc["id"]]})
        return documents.map(lambda doc: {"conversation": _conversation(doc, self.category, questions)})

    def _files(self, split: str) -> tuple[Path, Path | None]:
        """The files of questions and of ground truths, in our layout or in upstream's. Raises BadSource."""
        name = f"{VERSION}_{self.category}.json"
        layouts = [(f"{self.task}/{split}.jsonl", f"{self.task}/possible_answer.jsonl"), (name, f"possible_answer/{name}")]
        for questions, truths in layouts:
            pair = [questions] if self.category in WITHOUT_TRUTH else [questions, truths]
            if self.data is not None and (self.data / questions).exists():
                for file in pair:
                    if not (self.data / file).exists():
                        raise BadSource(f"{self.task}: {self.data / file} is wanted beside {questions}")
                return self.data / questions, self.data / truths if len(pair) > 1 else None
        wanted = layouts[0][0] if self.category in WITHOUT_TRUTH else " and ".join(layouts[0])
        raise BadSource(
            f"{self.task}: no data; with --data give a folder with {wanted}, or the folder bfcl_eval/data of the package "
            f"bfcl-eval (`pip install --no-deps --target DIR bfcl-eval`), which has {name}"
        )


def splits(*, category: str, config_source: str, **where: Any) -> BfclSplits:
    """A category's documents; in a task's YAML:

    custom_dataset: !function oss_tools.harness.bfcl.splits
    dataset_kwargs: {category: simple_python}
    test_split: test
    """
    return BfclSplits(category, folder=Path(config_source).parent, data=where.get("data"))


def _conversation(doc: Mapping[str, Any], category: str, file: Path) -> dict[str, Any]:
    try:
        (messages,) = doc["question"]  # one turn
        return {
            "messages": [{"role": m["role"], "content": m["content"]} for m in messages if m["role"] != "system"],
            "tools": tools_of(doc["function"], language_of(category)),
            **(
                {"instructions": "\n\n".join(said)}
                if (said := [m["content"] for m in messages if m["role"] == "system"])
                else {}
            ),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadSource(
            f"{file}: {doc.get('id')} has not the fields of {VERSION}: {type(error).__name__}: {error}"
        ) from None


def tools_of(functions: Sequence[Mapping[str, Any]], language: Language = "python") -> list[dict[str, Any]]:
    """BFCL's functions as JSON schemas: dots in names become "_", Java's and JavaScript's values are strings in their syntax."""
    tools = []
    for function in functions:
        parameters = function["parameters"]
        properties = {
            name: _schema(described) if language == "python" else _foreign_schema(described, LANGUAGE_NAMES[language])
            for name, described in parameters["properties"].items()
        }
        schema = {"type": "object", "properties": properties, "required": list(parameters.get("required", ()))}
        description = function["description"]
        if language != "python":
            description += f" (A function of {LANGUAGE_NAMES[language]}.)"
        tools.append({"name": function["name"].replace(".", "_"), "description": description, "parameters": schema})
    return tools


def _schema(described: Mapping[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {name: value for name, value in copy.deepcopy(dict(described)).items() if name != "optional"}
    schema["type"] = JSON_TYPES.get(described.get("type", "string"), "string")
    if isinstance(described.get("properties"), Mapping):
        schema["properties"] = {name: _schema(inner) for name, inner in described["properties"].items()}
    if isinstance(described.get("items"), Mapping):
        schema["items"] = _schema(described["items"])
    return schema


def _foreign_schema(described: Mapping[str, Any], language: str) -> dict[str, Any]:
    kind = described.get("type", "any")
    note = f"a value of any type of {language}" if kind == "any" else f"a {kind} of {language}"
    if isinstance(described.get("items"), Mapping):
        note += f" with elements of type {described['items'].get('type', 'any')}"
    if isinstance(described.get("properties"), Mapping):
        note += " with " + ", ".join(f"{key}: {inner.get('type', 'any')}" for key, inner in described["properties"].items())
    about = described.get("description", "")
    kept = {name: described[name] for name in ("default", "enum") if name in described}
    return {"type": "string", "description": f"{about} (Written as {note}, as in source code.)".strip(), **kept}


def request(doc: Mapping[str, Any]) -> str:
    """The last message, for models that see no conversations."""
    return str(doc["question"][0][-1]["content"])


class OneByOne(Environment):
    """For the parallel categories: models that make one call a message, as harmony has it, are let go on until they are done.

    Each call is answered with a word. A message of several calls is all that is wanted and ends the conversation.
    """

    def respond(self, calls: Sequence[Call], text: str) -> list[dict[str, str]]:
        return [{"role": "tool", "name": f"functions.{calls[0].name}", "content": "done"}] if len(calls) == 1 else []


# ---- scores ---------------------------------------------------------------------------------------------------------


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`correct`: the calls are those that are wanted, or there is one, or none, where that is what counts.

    A call whose arguments are no JSON object spoils an answer; where no call is wanted it is none, as in bfcl-eval. An answer
    that broke off before its final channel is no abstention.
    """
    details = details_of(results[0])
    calls = [call for turn in details.turns for step in turn for call in step] or details.calls
    category = str(doc["id"]).rsplit("_", 1)[0]
    readable = [{"name": call.name, "arguments": call.arguments} for call in calls if call.arguments is not None]
    called = bool(calls) and len(readable) == len(calls)
    if "irrelevance" in category:
        right = not called and "no_final" not in details.problems
    elif "relevance" in category:
        right = called
    else:
        right = called and check_calls(doc["function"], readable, doc["ground_truth"], language_of(category)).right
    return {"correct": float(right)}
