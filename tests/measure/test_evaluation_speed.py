"""The comparison of evaluation speed: its two tasks, its arithmetic, and a small run beside lm-eval's `hf` model."""

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from oss_tools.errors import BadRequest, MissingPackage
from oss_tools.measure import evaluation
from oss_tools.measure.evaluation import OURS, Setup, agreement, contest, fastest_peer, main, report
from oss_tools.measure.evaluators import CHOOSE, GENERATE, SHOTS, choices, problems, right_number, task

pytest.importorskip("lm_eval", reason="needs the extra `eval`")


def test_worked_answers_are_right() -> None:
    for doc in islice(problems(), 300):
        sums = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", doc["worked"])
        assert len(sums) == 2
        for a, sign, b, result in sums:
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)
        assert right_number(doc, [doc["worked"]]) == {"acc": 1.0}
        assert right_number(doc, ["The answer is -7."]) == {"acc": 0.0}


def test_there_are_enough_questions_with_choices() -> None:
    found = list(islice(choices(), 200 + SHOTS))
    assert len({doc["question"] for doc in found}) == 200 + SHOTS
    assert all(len(set(doc["choices"])) == 4 and doc["gold"] in range(4) for doc in found)
    with pytest.raises(BadRequest, match="5000 questions are wanted, there are"):
        task(CHOOSE, 5000)


@pytest.mark.parametrize("kind", [GENERATE, CHOOSE])
def test_every_question_has_the_same_examples_before_it(kind: str) -> None:
    from lm_eval.tasks import TaskManager

    (made,) = TaskManager(include_defaults=False).load([task(kind, 3)])["tasks"].values()
    made.set_fewshot_seed(0)
    made.build_all_requests()
    contexts = {request.args[0] for request in made.instances}
    assert len(contexts) == 3
    assert {context.count("Question: ") for context in contexts} == {SHOTS + 1}
    assert len({context.rpartition("Question: ")[0] for context in contexts}) == 1


class Scripted:
    """A program that needs no time: in place of `Child`. `asked` are the runs of all."""

    asked: list[tuple[str, dict[str, Any]]]
    seconds: Callable[[str, dict[str, Any]], float]

    def __init__(self, kind: str, model: str, threads: int, dtype: str = "", activations: str = "") -> None:
        self.name = f"{kind} {dtype}".strip()
        self.ready = {"facts": {"kernels": "none"}}

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *error: object) -> None: ...

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        assert what == "run"
        type(self).asked.append((self.name, request))
        count = request["count"]
        right = [[-1.0, True], [-2.0, False]] if request["kind"] == CHOOSE else ["4"]
        usage = {"computed": 10, "positions": 40} if self.name == "oss-tools eval" else {}
        seconds = type(self).seconds(self.name, request)
        return {"seconds": seconds, "score": 0.5, "outcomes": [right] * count, "usage": usage}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    """hf is fastest in bfloat16 with batch 32; ours takes a tenth of the time."""

    def seconds(name: str, request: dict[str, Any]) -> float:
        each = {"lm-eval hf float32": 2.0, "lm-eval hf bfloat16": 1.0}.get(name, 0.05)
        if name == "oss-tools eval":
            each *= (1 if request.get("prefixes", True) else 3) * (1 if request["batch"] > 1 else 2)
        else:
            each /= request["batch"] ** 0.2
        return each * request["count"]

    monkeypatch.setattr(evaluation, "PACKAGES", ())
    monkeypatch.setattr(Scripted, "asked", [], raising=False)
    monkeypatch.setattr(Scripted, "seconds", staticmethod(seconds), raising=False)
    return Scripted


def test_a_contest(scripted: type[Scripted], tiny_llama: Path) -> None:
    record = contest(tiny_llama, {GENERATE: 40, CHOOSE: 8}, threads=1, rounds=1, start=scripted)
    assert json.loads(json.dumps(record)) == record
    for kind, count in ((GENERATE, 40), (CHOOSE, 8)):
        found = record["tasks"][kind]
        assert found["peer"] == "lm-eval hf, bfloat16, batch 32"
        assert found["times_as_fast"] == pytest.approx(10)
        assert found["agreement"] == 1.0
        assert len(found["trials"]) == 5
        whole = [name for name, asked in scripted.asked if (asked["kind"], asked["count"]) == (kind, count)]
        assert whole[-3:] == ["oss-tools eval", "lm-eval hf bfloat16", "oss-tools eval"], "ours before and after"
        part = found["part"]
        assert part["questions"] == count // 4
        without = part["seconds"]["oss-tools, no shared prefixes"] / part["seconds"]["oss-tools"]
        assert without == pytest.approx(3)
    text = report(record)
    assert "not computed again" in text
    assert "75 %" in text
    assert "10.0 times as fast; same answers: 100.0 %" in text


def test_the_data_type_is_chosen_before_the_batch_size() -> None:
    asked = []

    def ask(setup: Setup, kind: str, count: int) -> dict[str, Any]:
        asked.append((setup.dtype, setup.batch, count))
        return {"seconds": count * {"float32": 1.0, "bfloat16": 2.0}[setup.dtype] * (1 + abs(setup.batch - 8))}

    best, trials = fastest_peer(GENERATE, 100, ask)
    assert best == Setup(8, "float32")
    assert asked == [("float32", 8, 8), ("bfloat16", 8, 8), ("float32", 1, 4), ("float32", 16, 16), ("float32", 32, 32)]
    assert trials["lm-eval hf, bfloat16, batch 8"] == 2.0
    asked.clear()
    fastest_peer(CHOOSE, 3, ask)
    assert [count for *_, count in asked] == [3, 3, 3, 3, 3]  # there are no more


def test_agreement_is_of_texts_and_of_likeliest_choices() -> None:
    assert agreement([["4"], ["5"]], [["4"], ["6"]]) == 0.5
    assert agreement([[[-1.0, True], [-2.0, False]]], [[[-3.0, False], [-3.5, False]]]) == 1.0
    assert agreement([[[-1.0, True], [-2.0, False]]], [[[-3.5, False], [-3.0, False]]]) == 0.0


def test_labels() -> None:
    assert OURS.label == "oss-tools"
    assert Setup(1, prefixes=False).label == "oss-tools, no shared prefixes, no batching"


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "PACKAGES", ("lm_eval", "no_such_package"))
    with pytest.raises(MissingPackage, match=r"needs no_such_package: pip install"):
        contest(tmp_path, {}, 1, 1)
    monkeypatch.setattr(evaluation, "PACKAGES", ())
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.peers
def test_a_small_run(tiny_llama: Path, tmp_path: Path) -> None:
    """Both programs, for real, on a model of random weights."""
    pytest.importorskip("torch", reason="needs the extra `peers`")
    main([str(tiny_llama), "--generate", "4", "--choose", "4", "--threads", "1", "--output", str(tmp_path / "speed.json")])
    record = json.loads((tmp_path / "speed.json").read_text())
    for found in record["tasks"].values():
        ours, theirs = found["programs"]["oss-tools"], found["programs"][found["peer"]]
        assert len(ours["seconds"]) == 2
        assert min(ours["seconds"] + theirs["seconds"]) > 0
        assert 0 < ours["usage"]["computed"] < ours["usage"]["positions"] / 2, "the examples are computed once"
        assert set(found["part"]["seconds"]) >= {"oss-tools, no shared prefixes"}
    assert record["tasks"][CHOOSE]["agreement"] >= 0.5
