"""GPQA from the user's own file: columns, the order of options, answers, repeats. The questions here are invented."""

import csv
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from scripted import Scripted

from oss_tools.errors import BadSource
from oss_tools.harness.gpqa import shuffled, text
from oss_tools.harness.tasks import load_tasks

COLUMNS = (
    "Question",
    "Correct Answer",
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
    "High-level domain",
)
ROWS = [
    ("Which of these is a noble gas?\n", " helium", "iron", "zinc", "lead", "Chemistry"),
    ("What holds a nucleus together?", "the strong force", "gravity", "glue", "string", "Physics"),
]


def write(folder: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS, name: str = "gpqa_diamond") -> Path:
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder


def asked(folder: Path):
    return load_tasks(["gpqa"], folder)["tasks"]["gpqa"]


def test_the_authors_file_is_read(tmp_path: Path) -> None:
    task = asked(write(tmp_path, ROWS))
    one, two = task.eval_docs
    assert sorted(one["options"]) == ["helium", "iron", "lead", "zinc"]
    assert one["options"][one["key"]] == "helium"
    assert (one["kind"], two["kind"]) == ("Chemistry", "Physics")
    prompt = task.doc_to_text(one)
    assert prompt.startswith("Which of these is a noble gas?\n\n(A) ")
    assert f"({task.doc_to_target(one)}) helium\n" in prompt
    assert task.config.repeats == 8


def test_right_and_wrong_answers(tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate

    folder = write(tmp_path, ROWS)
    right = Scripted(lambda doc: f"It is {'ABCD'[doc['key']]}.\n\nAnswer: {'ABCD'[doc['key']]}")
    for model, expected in ((right, 1.0), (Scripted(lambda doc: "?"), 0.0)):
        found = evaluate(model, load_tasks(["gpqa"], folder), bootstrap_iters=0)["results"]["gpqa"]
        assert found["correct,none"] == expected


def test_the_order_of_options_is_the_questions_own() -> None:
    doc = {"question": "Which?", "correct": "a", "incorrect": ["b", "c", "d"]}
    assert shuffled(doc) == shuffled(dict(doc))
    assert len({tuple(shuffled(doc, seed)["options"]) for seed in range(40)}) > 10
    keys = Counter(shuffled({**doc, "question": f"Which of {n}?"})["key"] for n in range(400))
    assert set(keys) == {0, 1, 2, 3}
    assert min(keys.values()) > 60, "no letter is favoured"
    assert "(D)" in text(shuffled(doc))


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (
            ("Question", "Answer"),
            ("Which?", "a"),
            r"Question, Answer; wanted: Correct Answer \(or correct_answer\) and",
        ),
        (COLUMNS, ("Which?", "a", "b", "c", "", "x"), "none of them empty"),
        (COLUMNS, ("Which?", "a", "b", "a", "c", "x"), "the right option stands among the wrong ones"),
        (COLUMNS, (" ", "a", "b", "c", "d", "x"), "a question and 4 options are wanted"),
    ],
)
def test_other_columns_are_told(tmp_path: Path, columns: tuple[str, ...], row: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadSource, match=message):
        _ = asked(write(tmp_path, [row], columns)).eval_docs
