"""The full tier's questions: run from --data DIR on files in the public sets' form, right and wrong answers told apart."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from full_data import SETS, write_sets
from scripted import Scripted

from oss_tools.errors import BadSource
from oss_tools.harness.questions import aime_key, gsm8k_key, medmcqa
from oss_tools.harness.tasks import load_tasks

LIKELIHOOD = {"medqa": "B", "medmcqa": "B", "pubmedqa": "yes", "mmlu_anatomy": "C", "mmlu_virology": "C"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data"))


def scores(task: str, model: Scripted, data: Path) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    return evaluate(model, load_tasks([task], data), bootstrap_iters=0)["results"][task]


@pytest.mark.parametrize("task", SETS)
def test_right_answers_score_one_and_wrong_ones_zero(task: str, data: Path) -> None:
    _, documents, right, wrong = SETS[task]
    for answers, expected in ((right, 1.0), (wrong, 0.0)):
        model = Scripted(lambda doc, answers=answers: answers[documents.index({k: doc[k] for k in documents[0]})])
        assert scores(task, model, data)["correct,none"] == expected
        prompts = list(dict.fromkeys(model.prompts))  # some are asked several times
        for prompt, document in zip(prompts, documents, strict=True):
            question = next(document[name] for name in ("question", "problem", "Problem") if name in document)
            assert question in prompt


def test_an_answer_that_is_missing_counts_apart(data: Path) -> None:
    found = scores("gsm8k", Scripted(lambda doc: ""), data)
    assert (found["correct,none"], found["answered,none"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_likelihood_variants_read_the_same_files(name: str, data: Path) -> None:
    right = LIKELIHOOD[name]
    assert scores(f"{name}_likelihood", Scripted(lambda doc: right), data)["acc,none"] == 1.0
    assert scores(f"{name}_likelihood", Scripted(lambda doc: "A" if right != "yes" else "no"), data)["acc,none"] == 0.0


def test_a_missing_set_says_which_file_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for task, (split, *_rest) in SETS.items():
        with pytest.raises(BadSource) as error:
            scores(task, Scripted(lambda doc: ""), tmp_path)
        assert f"{task}/{split}.jsonl" in str(error.value)
        assert "/" in str(error.value).partition(": ")[2].partition(" cannot be had")[0], "the hub's name"
        assert "--data" in str(error.value)


def test_keys() -> None:
    assert gsm8k_key({"answer": "1,200+300\n#### 1,500"}) == "1500"
    assert aime_key({"answer": "033"}) == "033"
    assert aime_key({"answer": 33}) == aime_key({"answer": 33.0}) == "33"


def test_a_split_without_answers_is_refused() -> None:
    with pytest.raises(BadSource, match="no answers"):
        medmcqa.letter({"question": "?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": -1})
