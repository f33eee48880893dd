"""The checker of function calls, and BFCL's categories run from small files in its form."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadSource
from oss_tools.harness.answers import Answer, Call, Details
from oss_tools.harness.bfcl import CATEGORIES, WITHOUT_TRUTH, BfclSplits, OneByOne, score, tools_of
from oss_tools.harness.bfcl_check import check_calls
from oss_tools.harness.bfcl_literals import java_value, javascript_value
from oss_tools.harness.suites import task_files

WEATHER: dict[str, Any] = {
    "name": "weather.get",
    "description": "The weather.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How many."},
            "limit": {"type": "float", "description": "Degrees."},
            "hours": {"type": "array", "items": {"type": "integer"}, "description": "Which."},
            "names": {"type": "array", "items": {"type": "string"}, "description": "Which."},
            "place": {
                "type": "dict",
                "properties": {"lat": {"type": "float"}, "label": {"type": "string"}},
                "description": "Where.",
            },
            "stops": {"type": "array", "items": {"type": "dict"}, "description": "Stops."},
            "exact": {"type": "boolean", "description": "Whether."},
        },
        "required": ["city"],
    },
}
TRUTH = {
    "weather.get": {
        "city": ["San José, CA", "San Jose"],
        "days": [3, ""],
        "limit": [20.0, ""],
        "hours": [[6, 18], ""],
        "names": [["Rain Fall", "Sun"], ""],
        "place": [{"lat": [1.5], "label": ["Home", ""]}, ""],
        "stops": [[{"at": ["A"]}, {"at": ["B", "C"]}], ""],
        "exact": [True, ""],
    }
}


def right(arguments: dict[str, Any], name: str = "weather.get") -> bool:
    return check_calls([WEATHER], [{"name": name, "arguments": arguments}], [TRUTH]).right


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"city": "San Jose"}, True),
        ({"city": "san-jose"}, True),
        ({"city": "SAN JOSÉ CA."}, True),
        ({"city": "San Francisco"}, False),
        ({"city": ["San Jose"]}, False),
        ({}, False),
        ({"city": "San Jose", "unknown": 1}, False),
        ({"city": "San Jose", "days": 3}, True),
        ({"city": "San Jose", "days": 4}, False),
        ({"city": "San Jose", "days": 3.0}, False),
        ({"city": "San Jose", "days": "3"}, False),
        ({"city": "San Jose", "days": True}, False),
        ({"city": "San Jose", "limit": 20.0}, True),
        ({"city": "San Jose", "limit": 20}, True),
        ({"city": "San Jose", "limit": 20.5}, False),
        ({"city": "San Jose", "limit": "20.0"}, False),
        ({"city": "San Jose", "hours": [6, 18]}, True),
        ({"city": "San Jose", "hours": [18, 6]}, False),
        ({"city": "San Jose", "hours": [6]}, False),
        ({"city": "San Jose", "hours": "6, 18"}, False),
        ({"city": "San Jose", "names": ["rain fall", "SUN"]}, True),
        ({"city": "San Jose", "names": ["rain"]}, False),
        ({"city": "San Jose", "place": {"lat": 1.5}}, True),
        ({"city": "San Jose", "place": {"lat": 1.5, "label": "HOME"}}, True),
        ({"city": "San Jose", "place": {"label": "Home"}}, False),
        ({"city": "San Jose", "place": {"lat": 1.5, "more": 1}}, False),
        ({"city": "San Jose", "place": {"lat": {"lat": 1.5}}}, False),
        ({"city": "San Jose", "stops": [{"at": "a"}, {"at": "c"}]}, True),
        ({"city": "San Jose", "stops": [{"at": "c"}, {"at": "a"}]}, False),
        ({"city": "San Jose", "stops": [{"at": "a"}]}, False),
        ({"city": "San Jose", "exact": True}, True),
        ({"city": "San Jose", "exact": "true"}, False),
        ({"city": "San Jose", "exact": 1}, False),
        ({"city": None}, False),
    ],
)
def test_python_values(arguments: dict[str, Any], expected: bool) -> None:
    assert right(arguments) is expected


def test_names_with_dots() -> None:
    assert right({"city": "San Jose"}, "weather_get")
    assert not right({"city": "San Jose"}, "get")


def test_a_parameter_that_must_be_given() -> None:
    truth = [{"weather.get": {"city": ["Rome"], "days": [7]}}]
    assert not check_calls([WEATHER], [{"name": "weather.get", "arguments": {"city": "Rome"}}], truth).right


def test_parallel_calls_come_in_any_order() -> None:
    truth = [{"weather.get": {"city": [city]}} for city in ("Rome", "Oslo", "Rome")]
    calls = [{"name": "weather.get", "arguments": {"city": city}} for city in ("Oslo", "Rome", "Rome")]
    assert check_calls([WEATHER], calls, truth).right
    assert not check_calls([WEATHER], calls[:2], truth).right
    assert not check_calls([WEATHER], [calls[0], calls[0], calls[1]], truth).right
    assert "wanted" in check_calls([WEATHER], [], truth).reason


@pytest.mark.parametrize(
    ("text", "kind", "nested", "value"),
    [
        ("5", "integer", None, 5),
        ("5.5", "integer", None, "5.5"),
        ("5L", "long", None, 5),
        ("5", "long", None, "5"),
        ("1.5f", "float", None, 1.5),
        ("1.5", "double", None, 1.5),
        ("1e3", "double", None, 1000.0),
        ("1.5f", "double", None, "1.5f"),
        ("true", "boolean", None, True),
        ("True", "boolean", None, "True"),
        ("name", "any", None, "name"),
        ("new int[]{1, 2}", "Array", "integer", [1, 2]),
        ("new int[] { }", "Array", "integer", []),
        ("values", "Array", "integer", "values"),
        ('new ArrayList<>(Arrays.asList("a", "b"))', "ArrayList", "String", ["a", "b"]),
        ("new ArrayList<Long>() {{ add(1L); add(2L); }}", "ArrayList", "long", [1, 2]),
        ("new ArrayList<>()", "ArrayList", "String", []),
        ('new HashMap<String, Object>() {{ put("a", 1); put("b", "c"); }}', "HashMap", None, {"a": 1, "b": "c"}),
        ("new HashMap<>()", "HashMap", None, {}),
    ],
)
def test_java_values(text: str, kind: str, nested: str | None, value: Any) -> None:
    assert java_value(text, kind, nested) == value


@pytest.mark.parametrize(
    ("text", "kind", "nested", "value"),
    [
        ('"a"', "String", None, "a"),
        ("'a'", "String", None, "a"),
        ("a", "String", None, "a"),
        ("5", "integer", None, 5),
        ("5n", "Bigint", None, 5),
        ("2.5", "float", None, 2.5),
        ("true", "Boolean", None, True),
        ("[1, 2]", "array", "integer", [1, 2]),
        ("new Array(1, 2)", "array", "integer", [1, 2]),
        ("[[1, 2], [3]]", "array", "array", [[1, 2], [3]]),
        ("['a', \"b\"]", "array", "String", ["a", "b"]),
        ("[]", "array", "String", []),
        ("list", "array", "String", "list"),
        ("{a: 1, b: 'x', c: [1, 2], d: true}", "dict", None, {"a": 1, "b": "x", "c": [1, 2], "d": True}),
        ("{}", "dict", None, {}),
        ("options", "dict", None, "options"),
    ],
)
def test_javascript_values(text: str, kind: str, nested: str | None, value: Any) -> None:
    assert javascript_value(text, kind, nested) == value


@pytest.mark.parametrize(
    ("language", "kind", "good", "bad"), [("java", "long", "5L", "5"), ("javascript", "integer", "5", "5n")]
)
def test_values_of_other_languages_come_in_strings(language: Any, kind: str, good: str, bad: str) -> None:
    function = {"name": "f", "parameters": {"properties": {"x": {"type": kind}}, "required": ["x"]}}
    for value, expected in ((good, True), (bad, False), (5, False)):
        assert (
            check_calls([function], [{"name": "f", "arguments": {"x": value}}], [{"f": {"x": [5]}}], language).right
            is expected
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*TRUTH["weather.get"], "x"]), json_values, max_size=4))
@settings(deadline=None, max_examples=200)
def test_whatever_is_called_nothing_breaks(arguments: dict[str, Any]) -> None:
    assert right(arguments) in (True, False)


@given(
    json_values,
    st.sampled_from(["java", "javascript"]),
    st.sampled_from(["Array", "array", "HashMap", "Set", "integer", "no such type"]),
)
@settings(deadline=None, max_examples=200)
def test_whatever_is_called_elsewhere_nothing_breaks(value: Any, language: Any, kind: str) -> None:
    function = {
        "name": "f",
        "parameters": {"properties": {"x": {"type": kind, "items": {"type": "any"}}}, "required": ["x"]},
    }
    assert check_calls([function], [{"name": "f", "arguments": {"x": value}}], [{"f": {"x": ["a"]}}], language).right in (
        True,
        False,
    )


# ---- categories -----------------------------------------------------------------------------------------------------


def entry(category: str) -> dict[str, Any]:
    question = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Rome?"}]]
    return {"id": f"{category}_0", "question": question, "function": [function_of(category)]}


def function_of(category: str) -> dict[str, Any]:
    kind = "String" if category in ("simple_java", "simple_javascript") else "string"
    properties = {"city": {"type": kind, "description": "Where."}, "more": {"type": "any", "description": "?"}}
    return {
        "name": "weather.get",
        "description": "It.",
        "parameters": {"type": "dict", "properties": properties, "required": ["city"]},
    }


def write(folder: Path, upstream: bool) -> Path:
    for category in CATEGORIES:
        name = f"BFCL_v4_{category}.json"
        questions = folder / name if upstream else folder / f"bfcl_{category}" / "test.jsonl"
        truths = folder / "possible_answer" / name if upstream else folder / f"bfcl_{category}" / "possible_answer.jsonl"
        for file, row in (
            (questions, entry(category)),
            (truths, {"id": f"{category}_0", "ground_truth": [{"weather.get": {"city": ["Rome"], "more": [""]}}]}),
        ):
            if file == questions or category not in WITHOUT_TRUTH:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(row) + "\n")
    return folder


def answer(*calls: Call) -> Answer:
    return Answer("", Details(calls=calls))


ROME = Call("weather_get", {"city": "Rome"}, '{"city": "Rome"}')
OSLO = Call("weather_get", {"city": "Oslo"}, '{"city": "Oslo"}')
BROKEN = Call("weather_get", None, '{"city": "Rome"')


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("category", CATEGORIES)
def test_categories_from_files(category: str, upstream: bool, tmp_path: Path) -> None:
    documents = BfclSplits(category, folder=tmp_path, data=write(tmp_path, upstream))["test"]
    (doc,) = documents
    assert doc["conversation"]["messages"] == [{"role": "user", "content": "Weather in Rome?"}]
    assert doc["conversation"]["instructions"] == "Be brief."
    (tool,) = doc["conversation"]["tools"]
    assert tool["name"] == "weather_get"
    assert tool["parameters"]["properties"]["city"]["type"] == "string"
    assert tool["parameters"]["required"] == ["city"]
    found = [score(doc, [answer(*calls)])["correct"] for calls in ((ROME,), (OSLO,), (ROME, ROME), (BROKEN,), ())]
    if "irrelevance" in category:
        assert found == [0, 0, 0, 1, 1]
    elif "relevance" in category:
        assert found == [1, 1, 1, 0, 0]
    else:
        assert found == [1, 0, 0, 0, 0]


def test_an_answer_that_broke_off_is_no_abstention(tmp_path: Path) -> None:
    (doc,) = BfclSplits("irrelevance", folder=tmp_path, data=write(tmp_path, upstream=False))["test"]
    assert score(doc, [Answer("", Details(problems=("no_final",)))]) == {"correct": 0.0}
    assert score(doc, [Answer("None serves.", Details())]) == {"correct": 1.0}
    assert score(doc, ["None serves."]) == {"correct": 1.0}


def test_parallel_calls_one_by_one(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    """A harmony model calls, sees that it is done, and calls again; all its calls are judged."""
    pytest.importorskip("lm_eval")
    from fake_engine import FakeEngine
    from lm_eval.evaluator import evaluate
    from test_engine_lm import CALL, FINAL

    from oss_tools.harness.lm import EngineLM
    from oss_tools.harness.tasks import load_tasks

    write(tmp_path, upstream=False)
    truth = [{"weather.get": {"city": [city], "more": [""]}} for city in ("Rome", "Oslo")]
    (tmp_path / "bfcl_parallel" / "possible_answer.jsonl").write_text(
        json.dumps({"id": "parallel_0", "ground_truth": truth})
    )

    def answering(cities: list[str]) -> Any:
        def answer_to(prompt: str) -> str:
            made = prompt.count("to=assistant")
            return (
                CALL.format("weather_get", json.dumps({"city": cities[made]}))
                if made < len(cities)
                else FINAL.format("Done.")
            )

        return answer_to

    for cities, expected in ((["Oslo", "Rome"], 1.0), (["Oslo"], 0.0), (["Oslo", "Rome", "Rome"], 0.0), ([], 0.0)):
        lm = EngineLM(FakeEngine(tiny_gpt_oss, answering(cities)))  # type: ignore[arg-type]
        found = evaluate(lm, load_tasks(["bfcl_parallel"], tmp_path), bootstrap_iters=0, apply_chat_template=True)
        assert found["results"]["bfcl_parallel"]["correct,none"] == expected


def test_a_message_of_several_calls_is_all() -> None:
    assert OneByOne({}).respond([ROME, OSLO], "") == []
    assert OneByOne({}).respond([], "It rains.") == []
    assert OneByOne({}).respond([ROME], "") == [{"role": "tool", "name": "functions.weather_get", "content": "done"}]


def test_every_category_is_a_task() -> None:
    assert {f"bfcl_{category}" for category in CATEGORIES} <= set(task_files())


def test_a_task_runs_in_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator import evaluate
    from scripted import Scripted

    from oss_tools.harness.tasks import load_tasks

    model = Scripted(lambda doc: answer(ROME))
    tasks = load_tasks([f"bfcl_{category}" for category in CATEGORIES], write(tmp_path, upstream=False))
    found = evaluate(model, tasks, bootstrap_iters=0)["results"]
    assert {name: row["correct,none"] for name, row in found.items()} == {
        f"bfcl_{category}": float("irrelevance" not in category) for category in CATEGORIES
    }
    assert set(model.prompts) == {"Weather in Rome?"}


def test_types_of_all_languages_become_json_types() -> None:
    (tool,) = tools_of([WEATHER])
    properties = tool["parameters"]["properties"]
    assert {name: schema["type"] for name, schema in properties.items()} == {
        "city": "string", "days": "integer", "limit": "number", "hours": "array", "names": "array", "place": "object",
        "stops": "array", "exact": "boolean",
    }  # fmt: skip
    assert properties["hours"]["items"] == {"type": "integer"}
    assert properties["place"]["properties"]["lat"] == {"type": "number"}
    (java,) = tools_of([{**WEATHER, "name": "a.b.c"}], "java")
    assert java["name"] == "a_b_c"
    assert {schema["type"] for schema in java["parameters"]["properties"].values()} == {"string"}
    assert "Java 8" in java["description"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "bfcl_multiple" / "test.jsonl").unlink(), "possible_answer.jsonl"),
        (lambda folder: (folder / "bfcl_multiple" / "possible_answer.jsonl").unlink(), "possible_answer.jsonl is wanted"),
        (
            lambda folder: (folder / "bfcl_multiple" / "possible_answer.jsonl").write_text('{"id": "other"}'),
            "no ground_truth for multiple_0",
        ),
        (
            lambda folder: (folder / "bfcl_multiple" / "test.jsonl").write_text('{"id": "multiple_0", "question": 1}'),
            "not the fields",
        ),
        (lambda folder: (folder / "bfcl_multiple" / "test.jsonl").write_text("nothing"), "line 1"),
    ],
)
def test_what_is_missing_is_named(change: Any, words: str, tmp_path: Path) -> None:
    change(write(tmp_path, upstream=False))
    with pytest.raises(BadSource, match=words):
        BfclSplits("multiple", folder=tmp_path, data=tmp_path)["test"]


def test_without_data_the_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"bfcl_parallel/test.jsonl and bfcl_parallel/possible_answer.jsonl.*bfcl-eval"):
        BfclSplits("parallel", folder=tmp_path)["test"]
