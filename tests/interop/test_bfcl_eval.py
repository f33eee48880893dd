"""Our checker of function calls beside bfcl-eval's, on BFCL's ground truth and on altered calls.

bfcl-eval pins an old NumPy and brings many model clients along, so its wheel is installed by itself, without what it depends on;
the one module of it that imports those clients is replaced by the one entry that the checker looks up.
"""

import copy
import importlib
import os
import random
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bfcl_calls import CATEGORIES, CHANGES, cases, entries, language_of

from oss_tools.chat.harmony import render
from oss_tools.harness import bfcl
from oss_tools.harness.bfcl_check import check_calls
from oss_tools.harness.bfcl_literals import JAVA_TYPES, JAVASCRIPT_TYPES, java_value, javascript_value
from oss_tools.harness.prompts import ChatPrompt, conversation_of

pytestmark = pytest.mark.peers
VERSION = "2026.3.23"
TARGET = Path(__file__).parents[2] / "build" / "peers" / f"bfcl-eval-{VERSION}"


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """The folder of the package, which can be imported from as long as this lasts."""
    if not (TARGET / "bfcl_eval" / "data").is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--upgrade",
        ]
        done = subprocess.run([*command, "--target", str(TARGET), f"bfcl-eval=={VERSION}"], capture_output=True, text=True)
        if done.returncode and not os.environ.get("CI"):  # .ci/run sets it: there it is a failure
            pytest.skip(f"bfcl-eval cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        assert done.returncode == 0, done.stderr
    models = types.ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"any": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules[models.__name__] = models
    sys.path.insert(0, str(TARGET))
    yield TARGET / "bfcl_eval"
    sys.path.remove(str(TARGET))
    for name in [name for name in sys.modules if name.partition(".")[0] == "bfcl_eval"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def theirs(package: Path) -> Callable[[dict[str, Any], list[dict[str, Any]], str], bool]:
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    languages = importlib.import_module("bfcl_eval.constants.enums").Language

    def check(entry: dict[str, Any], calls: list[dict[str, Any]], category: str) -> bool:
        entry, calls = copy.deepcopy(entry), copy.deepcopy(calls)
        named = [{call["name"]: call["arguments"]} for call in calls]
        language = languages(language_of(category))
        return bool(checker(entry["function"], named, entry["ground_truth"], language, category, "any")["valid"])

    return check


@pytest.mark.parametrize("category", CATEGORIES)
def test_verdicts_agree(
    category: str, package: Path, theirs: Callable[..., bool], capsys: pytest.CaptureFixture[str]
) -> None:
    found: Counter[tuple[str, bool, bool]] = Counter()
    for change, entry, calls in cases(package / "data", category, repeats=2):
        ours = check_calls(entry["function"], calls, entry["ground_truth"], bfcl.language_of(category)).right
        found[change, theirs(entry, calls, category), ours] += 1
    different = {key: count for key, count in found.items() if key[1] != key[2]}
    total, wrong = found.total(), sum(count for (_, their, _), count in found.items() if not their)
    with capsys.disabled():
        print(f"\n{category}: {total - sum(different.values())} of {total} verdicts agree; {wrong} of the calls are wrong")
    assert not different
    assert found["nothing", True, True] >= 20 * found["nothing", False, False]
    for change in CHANGES:
        assert any(key[0] == change for key in found)


def test_literals_are_read_alike(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    java = importlib.import_module(f"{folder}.java_type_converter").java_type_converter
    javascript = importlib.import_module(f"{folder}.js_type_converter").js_type_converter
    generator = random.Random(0)
    for _ in range(20_000):
        text = literal(generator)
        kind = generator.choice([kind for kind in JAVA_TYPES if kind not in ("Set", "Hashtable", "Queue", "Stack")])
        nested = generator.choice([None, "integer", "String", "any", "double", "char", "long", "boolean", "float"])
        expected = outcome(lambda: java(text, kind, *([nested] if nested else [])))  # noqa: B023
        assert repr(outcome(lambda: java_value(text, kind, nested))) == repr(expected), (text, kind, nested)  # noqa: B023
        kind = generator.choice(list(JAVASCRIPT_TYPES))
        nested = generator.choice([None, *JAVASCRIPT_TYPES]) if kind == "array" else None
        expected = outcome(lambda: javascript(text, kind, nested))  # noqa: B023
        assert repr(outcome(lambda: javascript_value(text, kind, nested))) == repr(expected), (text, kind, nested)  # noqa: B023


PIECES = re.findall(
    r"\S+",
    """1 -2 3.5 4L 5f 6n "a" 'b' true false x [ ] { } ( ) , : , ; new Array( int[] String[] ArrayList<> ArrayList<Integer>
    (Arrays.asList( )) HashMap<String,Object> () {{ }} put("k", add( ); " ' 1e3 key: [1,2] ["p","q"] [[1,2],[3]] {a:1,b:2}""",
)
FORMS = (
    "new int[]{?}", "new ArrayList<>(Arrays.asList(?))", "new ArrayList<Integer>() {{ add(?); add(?); }}",
    'new HashMap<>() {{ put("a", ?); put("b", ?); }}', "[?]", "[?, ?]", "new Array(?)", "{a: ?, b: ?}", "{?}", "[[?], [?]]",
    "new Array([?], [?])", "?",
)  # fmt: skip


def literal(generator: random.Random) -> str:
    """Something like a value in source code, right or wrong."""
    text = generator.choice(FORMS)
    while "?" in text:
        pieces = [generator.choice([*PIECES, " ", "\n"]) for _ in range(generator.randint(0, 4))]
        text = text.replace("?", "".join(pieces), 1)
    return text


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except NotImplementedError:
        return NotImplementedError


@pytest.mark.parametrize("category", bfcl.CATEGORIES)
def test_the_packages_data_are_read_as_they_are(category: str, package: Path) -> None:
    documents = bfcl.BfclSplits(category, folder=package, data=package / "data")["test"]
    assert len(documents) > 10
    for doc in documents:
        conversation = conversation_of(ChatPrompt(""), doc)
        text = "".join(render(conversation))
        assert all(tool["name"] in text for tool in conversation.tools)
        assert text.startswith("<|start|>system")


def test_the_ground_truth_is_right(package: Path) -> None:
    """Every category has calls that its own ground truth allows."""
    for category in CATEGORIES:
        assert all(entry["ground_truth"] for entry in entries(package / "data", category))
