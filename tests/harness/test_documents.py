"""Public sets as they come: forms of files, names of files and fields, and what is said of those that cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from full_data import SETS

from oss_tools.errors import BadSource
from oss_tools.harness import hub
from oss_tools.harness.documents import read_documents
from oss_tools.harness.fields import Fields
from oss_tools.harness.questions import index_of, texts_of
from oss_tools.harness.tasks import load_tasks

ROWS = [{"problem": "1 + 1?", "answer": "2"}, {"problem": 'say "né",\nplease', "answer": "3"}]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), stream := io.BytesIO())
    return stream.getvalue()


def table(rows: list[dict[str, Any]], delimiter: str = ",", header: bool = True) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FORMS = {
    "a.jsonl": LINES,
    "b.jsonl": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n"),
    "a.json": LINES,
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "around.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "viewer.json": json.dumps({"rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]}).encode(),
    "a.csv": table(ROWS),
    "a.tsv": table(ROWS, "\t"),
    "a.parquet": parquet(ROWS),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.csv.gz": gzip.compress(table(ROWS)),
    "bare.csv": table(ROWS, header=False),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_holds_the_same_documents(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(FORMS[name])
    columns = ("problem", "answer") if name == "bare.csv" else ()
    assert [document for _, document in read_documents(file, columns, {"problem"})] == ROWS


def test_an_object_of_objects_names_them(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"x1": {"QUESTION": "a"}, "x2": {"QUESTION": "b"}}))
    assert [document["id"] for _, document in read_documents(file)] == ["x1", "x2"]
    assert read_documents(file)[1][0] == f"{file}, 'x2'"


def test_one_line_of_json_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"id": "x", "ground_truth": [{"f": {"a": [1]}}]}\n')
    assert read_documents(file) == [(f"{file}, line 1", {"id": "x", "ground_truth": [{"f": {"a": [1]}}]})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2]", r"row 1: a JSON object is wanted, not int"),
        ("a.json", b"7", r"a JSON object is wanted, not int"),
        ("a.json", b"{", r"line 1: no JSON"),
        ("a.parquet", b"PAR1", r"no Parquet file"),
        ("a.jsonl.gz", b"{}", r"Not a gzipped file|damaged"),
        pytest.param("a.jsonl.gz", gzip.compress(LINES)[:-12], r"damaged", id="cut"),
        ("a.csv", b"a,b\n1\n", r"row 2: 1 columns, not the 2 of a, b"),
        ("a.csv", b"\xff\xfea", r"no CSV in UTF-8"),
        ("a.csv", b"a,b\n", r"holds no documents"),
    ],
)
def test_what_cannot_be_read_is_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSource, match=f"{name}.*({message})") as error:
        read_documents(tmp_path / name)
    assert "\n" not in str(error.value)


# ---- fields ---------------------------------------------------------------------------------------------------------


def test_missing_fields_are_told_with_those_that_are_there() -> None:
    fields = Fields({"problem": ["problem", "question"], "options": ["options", ["opa", "opb"]]})
    with pytest.raises(BadSource) as error:
        fields.read([("x.jsonl, line 3", {"text": "?", "opa": "a"})])
    assert str(error.value) == (
        "x.jsonl, line 3: the fields are text, opa; wanted: problem (or question) and options (or opa+opb)"
    )


def test_names_paths_and_several_names() -> None:
    fields = Fields({"q": ["q", "QUESTION"], "c": ["c", "context.contexts"], "o": ["o", ["A", "B"]], "x": ["x", "l.1"]})
    document = {"QUESTION": "?", "context": {"contexts": ["one"]}, "A": 1, "B": 2, "l": ["a", "b"]}
    assert fields.read([("", document)]) == [{**document, "q": "?", "c": ["one"], "o": [1, 2], "x": "b"}]
    ours = {"q": "1", "QUESTION": "2", "c": [], "o": [], "x": 0}
    assert fields.read([("", ours)]) == [ours]


@pytest.mark.parametrize(
    ("numbers", "expected"), [([1, 4, 2], [0, 3, 1]), ([0, 3, 1], [0, 3, 1]), (["1", "4"], [0, 3]), ([1, 2], [1, 2])]
)
def test_numbers_that_count_from_one(numbers: list[Any], expected: list[int]) -> None:
    fields = Fields({"cop": ["cop"]}, from_one={"cop": 4})
    assert [row["cop"] for row in fields.read([("", {"cop": number}) for number in numbers])] == expected


@pytest.mark.parametrize(
    ("key", "index"), [(2, 2), ("2", 2), ("C", 2), ("c", 2), ("(C)", 2), ("three", 2), ("?", -1), (-1, -1)]
)
def test_keys_of_choices(key: Any, index: int) -> None:
    assert index_of(key, ["one", "two", "three"]) == index


def test_choices_however_they_are_put() -> None:
    pairs = [{"key": "B", "value": "two"}, {"key": "A", "value": "one"}]
    assert texts_of({"B": "two", "A": "one", "E": None}) == texts_of(pairs) == texts_of(["one", "two"]) == ["one", "two"]


# ---- sets as they are published -------------------------------------------------------------------------------------

Q = "Which of these is number 2?"
CHOICES = ["zero", "one", "two", "three"]
LETTERED = dict(zip("ABCD", CHOICES, strict=True))
AIME_I, AIME_II = ({"question": f"Find {n}.", "answer": str(n)} for n in (70, 588))
PUBLISHED: dict[str, tuple[str, dict[str, bytes], list[Any]]] = {
    "AIME 2025, two files": (
        "aime25",
        {f"aime25/aime2025-{n}.jsonl": json.dumps(row).encode() for n, row in (("I", AIME_I), ("II", AIME_II))},
        ["70", "588"],
    ),
    "AIME 2025, the hub's folder": (
        "aime25",
        {f"AIME2025/aime2025-{n}.jsonl": json.dumps(row).encode() for n, row in (("I", AIME_I), ("II", AIME_II))},
        ["70", "588"],
    ),
    "AIME 2024 as Parquet": (
        "aime24",
        {"aime24/data/train-00000-of-00001.parquet": parquet([{"ID": "x", "Problem": "Find 33.", "Answer": 33}])},
        ["33"],
    ),
    "AIME 2024 as CSV": ("aime24", {"AIME2024.csv": table([{"Question": "Find 33.", "Answer": "033"}])}, ["033"]),
    "GSM8K as Parquet": (
        "gsm8k",
        {"gsm8k/test-00000-of-00001.parquet": parquet([{"question": "3 + 4?", "answer": "7 pens.\n#### 7"}])},
        ["7"],
    ),
    "MATH-500 as a list": (
        "math500",
        {"math500/test.json": json.dumps([{"problem": "?", "answer": r"\frac{3}{4}"}]).encode()},
        [r"\frac{3}{4}"],
    ),
    "MedMCQA, its authors' file": (
        "medmcqa",
        {
            "medmcqa/dev.json": "".join(
                json.dumps({"question": Q, "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": n}) + "\n" for n in (3, 1, 4)
            ).encode()
        },
        ["C", "A", "D"],
    ),
    "MedMCQA with letters": (
        "medmcqa",
        {"medmcqa/validation.jsonl": json.dumps({"question": Q, "options": LETTERED, "answer": "C"}).encode()},
        ["C"],
    ),
    "MedMCQA with a list": (
        "medmcqa",
        {"medmcqa/validation.parquet": parquet([{"question": Q, "choices": CHOICES, "label": 2}])},
        ["C"],
    ),
    "MedQA, its authors' file": (
        "medqa",
        {"medqa/phrases_no_exclude_test.jsonl": json.dumps({"question": Q, "options": LETTERED, "answer_idx": "C"}).encode()},
        ["C"],
    ),
    "MedQA for sequence classification": (
        "medqa",
        {
            "medqa/test.json": json.dumps(
                {"id": 1, "sent1": Q, "sent2": "", **{f"ending{n}": text for n, text in enumerate(CHOICES)}, "label": 2}
            ).encode()
        },
        ["C"],
    ),
    "MMLU, its authors' file": (
        "mmlu_anatomy",
        {"anatomy_test.csv": table([{"q": Q, **LETTERED, "k": "C"}], header=False)},
        ["C"],
    ),
    "MMLU, the hub's folder": (
        "mmlu_anatomy",
        {"anatomy/test-00000-of-00001.parquet": parquet([{"question": Q, "subject": "a", "choices": CHOICES, "answer": 2}])},
        ["C"],
    ),
    "MMLU with letters": (
        "mmlu_anatomy",
        {"mmlu_anatomy/test.jsonl.gz": gzip.compress(json.dumps({"question": Q, "options": LETTERED, "answer": "C"}).encode())},
        ["C"],
    ),
    "PubMedQA, its authors' file": (
        "pubmedqa",
        {"ori_pqal.json": json.dumps({"123": {"QUESTION": Q, "CONTEXTS": ["one", "two"], "final_decision": "yes"}}).encode()},
        ["yes"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("about", PUBLISHED)
def test_public_copies_are_read(about: str, tmp_path: Path) -> None:
    name, files, keys = PUBLISHED[about]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    task = load_tasks([name], tmp_path)["tasks"][name]
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == keys
    for doc in task.eval_docs:
        prompt = task.doc_to_text(doc)
        assert (doc.get("question") or doc["problem"]) in prompt
        assert "zero" in prompt or "choices" not in doc
    if name in ("medmcqa", "mmlu_anatomy", "medqa", "pubmedqa"):
        other = load_tasks([f"{name}_likelihood"], tmp_path)["tasks"][f"{name}_likelihood"]
        indices = [other.doc_to_target(doc) for doc in other.eval_docs]
        assert [key if isinstance(key, str) else "ABCD"[key] for key in indices] == keys


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("aime25", {"text": "?", "answer": "1"}, r"line 1: the fields are text, answer; wanted: problem \(or question"),
        ("aime25", {"problem": "?", "answer": "1000"}, r"line 1: the answer is '1000', no integer from 0 to 999"),
        ("gsm8k", {"question": "?", "answer": "some"}, r"line 1: its fields cannot be read \(question is str, answer is str\)"),
        ("medmcqa", {"question": "?", "opa": "a"}, r"the fields are question, opa; wanted: opb \(or options\.B.*and cop"),
        ("medmcqa", {"question": "?", **dict.fromkeys(("opa", "opb", "opc", "opd"), "x"), "cop": -1}, "no answers"),
        ("medqa", {"question": 7, "options": LETTERED, "answer_idx": "A"}, r"line 1: its fields cannot be read \(question is"),
        ("pubmedqa", {"question": "?", "contexts": ["a"], "final_decision": "so"}, "line 1: the decision is 'so', none of"),
    ],
)  # fmt: skip
def test_documents_that_cannot_be_asked_are_told_before_anything_is_loaded(
    name: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    split = SETS[name][0]
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadSource, match=rf"{name}/{split}\.jsonl, {message}" if "line" in message else message) as error:
        load_tasks([name], tmp_path)
    assert "\n" not in str(error.value)


# ---- what is missing ------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "answers", lambda endpoint: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
def test_a_missing_set_is_left_out_with_a_line_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "?", "answer": "#### 7"}')
    (tmp_path / "aime25").mkdir()
    (tmp_path / "aime25" / "problems.txt").write_text("?")
    names, said = ["gsm8k", "aime25"], []
    found = load_tasks(names, tmp_path, say=said.append, may_miss=names)["tasks"]
    assert list(found) == ["gsm8k"]
    (line,) = said
    assert line.startswith("aime25 is left out: math-ai/aime25 cannot be had (it is not in the cache, and ")
    assert f"{tmp_path / 'aime25'} holds problems.txt" in line
    assert "Errno" not in line
    with pytest.raises(BadSource, match="aime25"):
        load_tasks(names, tmp_path)
    with pytest.raises(BadSource, match="aime25"):
        load_tasks(["aime25"], tmp_path, may_miss=names)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=rf"--data {tmp_path}/nowhere: there is no such folder"):
        load_tasks(["gsm8k"], tmp_path / "nowhere")
